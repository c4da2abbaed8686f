"""Runs the user's handler for one gRPC request.

The border to user code: whatever it raises becomes the status of the request, in the same frames
that a good answer comes in. ERROR frames are left for what has no handler to ask.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from typing import TYPE_CHECKING, Any

from remora.core.request.grpc_status import GrpcCode, clip, code_of, details_of
from remora.errors import USER_ERRORS, RemoraError, gRPCStatusError
from remora.grpc_util import GrpcContext, gRPCInputStream
from remora.observe.tracebacks import has_user_frames, user_traceback
from remora.replica.grpc_messages import parser, serialize
from remora.replica.methods import MethodKind, UserMethod
from remora.replica.requests import RequestRunner
from remora.replica.sync_stream import iterate_in_thread
from remora.replica.work import Work
from remora.wire.codec import pack
from remora.wire.messages import Envelope, FrameKind, GrpcEnd, GrpcHead
from remora.wire.parcel import raw

if TYPE_CHECKING:
    from remora.replica.replica import Replica

_log = logging.getLogger("remora.replica")
#: Statuses that say that something is broken here, and not that the client asked for too much.
_FAULTS = frozenset((GrpcCode.UNKNOWN, GrpcCode.INTERNAL, GrpcCode.DATA_LOSS))


class GrpcRequests:
    """Answers gRPC requests with one replica's user code."""

    def __init__(self, replica: Replica, runner: RequestRunner) -> None:
        self._replica = replica
        self._runner = runner

    async def answer(self, work: Work) -> None:
        """Run the handler of any of the four kinds of gRPC methods."""
        envelope = work.envelope
        head = envelope.grpc
        assert head is not None
        context = self._runner.enter(envelope, work.task)
        rpc = GrpcContext(
            head,
            request_id=envelope.request_id,
            application=envelope.application,
            multiplexed_model_id=envelope.multiplexed_model_id,
            session_id=envelope.session_id,
            traceparent=envelope.trace_context,
        )
        try:
            method = self._runner.code.methods.find(envelope.method)
            argument = _argument(work, head, method)
            kwargs = {"grpc_context": rpc} if method.takes_grpc_context else {}
            result = await self._runner.run(method, (argument,), kwargs)
            name = f"{envelope.deployment}.{envelope.method}"
            if head.response_streaming:
                await self._send_stream(work, head, rpc, result, name)
                work.finish(FrameKind.END, _meta(rpc._end()))
            else:
                end = rpc._end()
                # Of an answer that is none, gRPC carries the status alone.
                body = b"" if end is not None and end.code else _whole(result, head, name)
                work.finish(FrameKind.RESPONSE, _meta(end), body)
        except asyncio.CancelledError:
            context.cancel_children()
            self._runner.finish_cancelled(work)
        except USER_ERRORS as error:  # Border: user code.
            end = _failed(rpc, error)
            _tell(error, end, rpc, envelope)
            kind = FrameKind.END if head.response_streaming else FrameKind.RESPONSE
            work.finish(kind, pack(end))

    async def _send_stream(
        self, work: Work, head: GrpcHead, rpc: GrpcContext, items: Any, name: str
    ) -> None:
        in_thread = inspect.isgenerator(items)
        if in_thread:
            items = iterate_in_thread(
                self._replica.threads, items, lambda item: serialize(item, head, name)
            )
        elif not inspect.isasyncgen(items):
            raise TypeError(
                f"{name} must be a generator: {head.service} says that it answers with a stream. "
                "Let it yield."
            )
        is_first = True
        try:
            async for item in items:
                data = item if in_thread else serialize(item, head, name)
                if is_first:
                    is_first = False
                    if rpc._compression:
                        work.connection.write(FrameKind.START, work.number, pack(rpc._compression))
                await work.send_item(b"", data)
        finally:
            await items.aclose()


def _argument(work: Work, head: GrpcHead, method: UserMethod) -> Any:
    """What the handler is called with: the message, or the stream of them."""
    parse = parser(head.request_type, head.request_module)
    if not head.request_streaming:
        body, work.body = work.body, b""
        return parse(bytes(raw(body)))
    if method.kind in (MethodKind.SYNC, MethodKind.GENERATOR):
        raise TypeError(
            f"{method.name} must be an `async def`: {head.service} says that it takes a stream of "
            "messages, which only that can wait for"
        )

    async def receive() -> Any:
        part = await work.receive()
        return parse(part["body"]) if part.get("more_body") else None

    return gRPCInputStream(receive, lambda: work.is_cancelled)


def _whole(result: Any, head: GrpcHead, name: str) -> bytes:
    if inspect.isasyncgen(result) or inspect.isgenerator(result):
        raise TypeError(
            f"{name} is a generator, but {head.service} says that it answers with one message: "
            "return it, or declare the method with `returns (stream …)`"
        )
    return serialize(result, head, name)


def _meta(end: GrpcEnd | None) -> bytes:
    return b"" if end is None else pack(end)


def _failed(rpc: GrpcContext, error: BaseException) -> GrpcEnd:
    try:
        return rpc._end_with(code_of(error), details_of(error))
    except Exception as failure:  # noqa: BLE001 - border: a user's `__str__`, or a code that is none
        return rpc._end_with(GrpcCode.INTERNAL, clip(f"{type(error).__name__} ({failure})"))


def _tell(error: BaseException, end: GrpcEnd, rpc: GrpcContext, envelope: Envelope) -> None:
    """Log what a handler raised: with its traceback, unless it is the handler's way to say no."""
    is_ours = isinstance(error, RemoraError) and not has_user_frames(error)
    is_meant = isinstance(error, gRPCStatusError) or rpc._code is not None
    if is_ours or (is_meant and end.code not in _FAULTS):
        _log.info("Request %s: %s", envelope.request_id, end.details)
        return
    _log.error(
        "%s.%s failed, gRPC %s, request %s\n%s",
        envelope.deployment,
        envelope.method,
        envelope.grpc.service if envelope.grpc is not None else "",
        envelope.request_id,
        user_traceback(error),
    )
