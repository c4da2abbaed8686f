"""Which status a failure has for a gRPC client."""

from __future__ import annotations

import pickle

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from remora.core.request.grpc_status import (
    GrpcCode,
    clip,
    code_number,
    code_of,
    details_of,
    of_error_meta,
)
from remora.errors import (
    BackPressureError,
    DeploymentUnavailableError,
    MethodNotFoundError,
    ReplicaDiedError,
    ReplicaUnavailableError,
    RequestCancelledError,
    RequestTimeoutError,
    gRPCStatusError,
)
from remora.wire.messages import ErrorMeta


def test_the_codes_are_those_of_grpc() -> None:
    assert {code.name: code.value[0] for code in grpc.StatusCode} == {
        code.name: code.value for code in GrpcCode
    }


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BackPressureError(1, 1, 429), "RESOURCE_EXHAUSTED"),
        (BackPressureError(1, 1, 503), "RESOURCE_EXHAUSTED"),
        (RequestTimeoutError("r", 1.0), "DEADLINE_EXCEEDED"),
        (RequestCancelledError("r"), "CANCELLED"),
        (DeploymentUnavailableError("a/b"), "UNAVAILABLE"),
        (ReplicaUnavailableError("a/b#c"), "UNAVAILABLE"),
        (ReplicaDiedError("a/b#c"), "INTERNAL"),
        (MethodNotFoundError("no method"), "INTERNAL"),
        (ValueError("x"), "INTERNAL"),
        (TimeoutError("a user's own"), "INTERNAL"),
        (gRPCStatusError(None, grpc.StatusCode.NOT_FOUND, "gone"), "NOT_FOUND"),
        (gRPCStatusError(None, 7, "no"), "PERMISSION_DENIED"),
    ],
)
def test_each_error_has_its_code(error: Exception, code: str) -> None:
    assert GrpcCode(code_of(error)).name == code


def test_details_are_the_text_and_for_a_users_error_its_type() -> None:
    assert details_of(ValueError("x")) == "ValueError: x"
    assert details_of(KeyError()) == "KeyError"
    assert details_of(RequestTimeoutError("r", 1.0)) == "Request r timed out after 1s."
    assert details_of(gRPCStatusError(ValueError("x"), 5, "said")) == "said"
    assert details_of(gRPCStatusError(ValueError("x"), 5)) == "x"


@pytest.mark.parametrize(
    ("status", "code"),
    [(503, 14), (429, 8), (408, 4), (413, 8), (499, 1), (500, 13)],
)
def test_an_error_frame_is_understood(status: int, code: int) -> None:
    meta = ErrorMeta("X", "text", http_status=status, from_user=False)
    assert of_error_meta(meta) == (code, "text")


def test_a_users_error_frame_is_internal() -> None:
    assert of_error_meta(ErrorMeta("KeyError", "k", http_status=503)) == (13, "KeyError: k")


@pytest.mark.parametrize("wrong", [17, -1, True, "NOT_FOUND", None, 5.0])
def test_what_is_no_code_is_refused(wrong: object) -> None:
    with pytest.raises(ValueError, match="no status code"):
        code_number(wrong)


@given(st.text())
def test_clipped_details_fit_and_are_the_beginning(text: str) -> None:
    kept = clip(text, 10)
    assert text.startswith(kept)
    encoded = "".join(
        c if " " <= c <= "~" and c != "%" else "%xx" * len(c.encode("utf-8", "replace"))
        for c in kept
    )
    assert len(encoded) <= 10
    assert kept == text or len(encoded) > 10 - 12


def test_a_status_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(gRPCStatusError(ValueError("x"), 5, "said")))
    assert (error.grpc_code, error.grpc_details) == (5, "said")
    assert repr(error.original_exception) == "ValueError('x')"
