"""Which application a gRPC request is for."""

from __future__ import annotations

import pytest

from remora.core.request.grpc_status import GrpcCode
from remora.core.snapshot import AppRoute, Snapshot
from remora.proxy.grpc.front import RefusedError, choose_app


def snapshot(*names: str, leaving: dict[str, str] | None = None) -> Snapshot:
    return Snapshot(1, {name: AppRoute(name, None, "I") for name in names}, {}, leaving or {})


@pytest.mark.parametrize(
    ("name", "names", "found"),
    [(None, ("a",), "a"), ("a", ("a",), "a"), ("b", ("a", "b"), "b")],
)
def test_an_application_is_found(name: str | None, names: tuple[str, ...], found: str) -> None:
    assert choose_app(name, snapshot(*names)).name == found


def test_while_the_instance_ends_no_application_is_unknown() -> None:
    for name in (None, "gone"):
        with pytest.raises(RefusedError, match="shutting down") as caught:
            choose_app(name, Snapshot(1, ending=True))
        assert caught.value.code == GrpcCode.UNAVAILABLE


@pytest.mark.parametrize(
    ("name", "names", "leaving", "code", "text"),
    [
        (None, ("b", "a"), {}, "NOT_FOUND", "'application': 'a', 'b'"),
        (None, (), {}, "NOT_FOUND", "No application runs"),
        ("c", ("b", "a"), {}, "NOT_FOUND", "no application 'c'; there are: 'a', 'b'"),
        ("c", (), {}, "NOT_FOUND", "there are: none"),
        ("c", ("a",), {"/c": "c"}, "UNAVAILABLE", "'c' is being deleted"),
        (None, (), {"/c": "c"}, "UNAVAILABLE", "being deleted"),
    ],
)
def test_a_refusal_says_which_there_are(
    name: str | None, names: tuple[str, ...], leaving: dict[str, str], code: str, text: str
) -> None:
    with pytest.raises(RefusedError) as caught:
        choose_app(name, snapshot(*names, leaving=leaving))
    assert GrpcCode(caught.value.code).name == code
    assert text in caught.value.details
