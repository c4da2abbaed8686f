"""What a handler of gRPC requests can ask and set."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from remora.grpc_util import GrpcContext, RayServegRPCContext, gRPCInputStream
from remora.wire.messages import GrpcEnd, GrpcHead


def context(**head: Any) -> GrpcContext:
    return GrpcContext(GrpcHead("s.S", "s.A", "s_pb2", "s.B", **head), request_id="r")


def test_it_has_the_name_that_ray_serves_users_know() -> None:
    assert RayServegRPCContext is GrpcContext


def test_nothing_set_is_no_end_of_its_own() -> None:
    assert context()._end() is None


def test_what_is_set_comes_out() -> None:
    one = context()
    one.set_code(grpc.StatusCode.NOT_FOUND)
    one.set_details("gone")
    one.set_trailing_metadata([("a", "b")])
    one.set_trailing_metadata([("c", "d"), ("e-bin", b"\xff")])
    one.set_compression(grpc.Compression.Gzip)
    assert one._end() == GrpcEnd(5, "gone", [("c", "d"), ("e-bin", b"\xff")], 2)
    assert one.code() is grpc.StatusCode.NOT_FOUND
    assert one.details() == "gone"
    assert one.trailing_metadata() == [("c", "d"), ("e-bin", b"\xff")]


def test_of_a_failure_what_was_set_comes_first() -> None:
    one = context()
    assert one._end_with(13, "text") == GrpcEnd(13, "text")
    one.set_code(0)  # OK and an exception do not go together
    assert one._end_with(13, "text").code == 13
    one.set_code(7)
    one.set_details("no")
    assert one._end_with(13, "text") == GrpcEnd(7, "no")


def test_what_cannot_be_sent_is_refused_where_it_is_set() -> None:
    one = context()
    with pytest.raises(ValueError, match="no status code"):
        one.set_code(99)
    with pytest.raises(TypeError, match="details must be a str"):
        one.set_details(b"x")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no compression"):
        one.set_compression(9)
    for wrong, error in (
        ([("Upper", "x")], ValueError),
        ([("grpc-own", "x")], ValueError),
        ([("a", "line\nbreak")], ValueError),
        ([("a", "ü")], ValueError),
        ([("a", b"x")], TypeError),
        ([("a-bin", "x")], TypeError),
    ):
        with pytest.raises(error, match="metadata"):
            one.set_trailing_metadata(wrong)
    assert one._end() is None


def test_a_client_with_a_certificate_has_an_identity() -> None:
    one = context(auth={"x509_common_name": [b"fish"]}, identity_key="x509_common_name")
    assert one.peer_identity_key() == "x509_common_name"
    assert one.peer_identities() == [b"fish"]
    assert context().peer_identity_key() is None


async def test_a_stream_ends_with_its_last_message_or_when_it_is_cancelled() -> None:
    messages = [1, 2, 3, None]

    async def receive() -> Any:
        return messages.pop(0)

    stream: gRPCInputStream[int] = gRPCInputStream(receive, lambda: False)
    assert await anext(stream) == 1
    assert not stream.is_cancelled()
    assert [each async for each in stream] == [2, 3]
    assert stream.is_exhausted
    assert [each async for each in stream] == []
    messages = [1, 2]
    stopped: gRPCInputStream[int] = gRPCInputStream(receive, lambda: False)
    stopped.cancel()
    assert stopped.is_cancelled()
    assert [each async for each in stopped] == []


def test_a_stream_is_cancelled_when_its_client_has_left() -> None:
    async def receive() -> Any:
        raise AssertionError("nobody reads")

    stream: gRPCInputStream[int] = gRPCInputStream(receive, lambda: True)
    assert stream.is_cancelled()
    assert not stream.is_exhausted


def test_errors_call_the_context_by_the_name_that_the_documentation_has() -> None:
    assert GrpcContext.__qualname__ == "RayServegRPCContext"
