"""The user's gRPC services as the proxy offers them: raw bytes in, raw bytes out.

No protobuf of the user's is opened here. One coroutine of gRPC's server runs for each request;
everything below it is callbacks of the router, so that no further task is needed for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable
from typing import Any

import grpc
from grpc import aio

from remora.core.request.grpc_status import GrpcCode, clip, code_of, details_of, of_error_meta
from remora.errors import gRPCStatusError
from remora.proxy.grpc.calls import PartsCall, WholeCall
from remora.proxy.grpc.front import GrpcFront, RefusedError, Rpc
from remora.wire.codec import decode_credit, decode_error, decode_grpc_end
from remora.wire.framing import RawFrame
from remora.wire.grpc import GrpcMethod, GrpcService
from remora.wire.messages import FrameKind, GrpcEnd
from remora.wire.parcel import raw

_log = logging.getLogger("remora.proxy")
_RESPONSE = int(FrameKind.RESPONSE)
_START = int(FrameKind.START)
_ITEM = int(FrameKind.ITEM)
_ERROR = int(FrameKind.ERROR)
_OK = GrpcEnd()
#: From news of the library to the cancelled task: its own task, the request's, the upload's.
_TURNS_TO_CANCEL = 4
_CODES = {code.value[0]: code for code in grpc.StatusCode}
_COMPRESSIONS = {each.value: each for each in grpc.Compression}


class UserServices(grpc.GenericRpcHandler):  # type: ignore[misc] # ships no types
    """Finds the handler of each method of the user's services."""

    def __init__(self, front: GrpcFront, services: Iterable[GrpcService]) -> None:
        self._handlers = {
            f"/{service.name}/{method.name}": _handler(front, service, method)
            for service in services
            for method in service.methods
        }

    def service(self, handler_call_details: Any) -> Any:
        """Return the handler of a method; None: no service of the user's has it."""
        return self._handlers.get(handler_call_details.method)


def _handler(front: GrpcFront, service: GrpcService, method: GrpcMethod) -> Any:
    one = _Method(front, service, method)
    if not (method.request_streaming or method.response_streaming):
        return grpc.unary_unary_rpc_method_handler(one.whole)
    if not method.request_streaming:
        return grpc.unary_stream_rpc_method_handler(one.parts_for_one)
    if not method.response_streaming:
        return grpc.stream_unary_rpc_method_handler(one.one_for_parts)
    return grpc.stream_stream_rpc_method_handler(one.parts_for_parts)


class _Method:
    """One method of a service."""

    def __init__(self, front: GrpcFront, service: GrpcService, method: GrpcMethod) -> None:
        self._front = front
        self._service = service
        self._method = method
        self._path = f"/{service.name}/{method.name}"
        self._limit = front.max_message_bytes

    # -- the four kinds -----------------------------------------------------------------------

    async def whole(self, request: bytes, context: Any) -> bytes:
        """One message there, one back."""
        rpc = await self._open(context)
        call = WholeCall(rpc.router, rpc.envelope, request)
        try:
            rpc.router.submit(call)
            frame = await call.answer()
        except asyncio.CancelledError:
            self._left(rpc, call.deadline)
            raise
        except Exception as error:  # noqa: BLE001 - border: a proxied request
            return await self._fail(rpc, context, *_status_of(error, rpc))
        return await self._answer(rpc, context, frame)

    async def parts_for_one(self, request: bytes, context: Any) -> None:
        """One message there, a stream back."""
        await self._stream(request, context)

    async def one_for_parts(self, _: Any, context: Any) -> bytes:
        """A stream there, one message back."""
        return await self._stream(b"", context)

    async def parts_for_parts(self, _: Any, context: Any) -> None:
        """A stream there, a stream back."""
        await self._stream(b"", context)

    async def _stream(self, request: bytes, context: Any) -> bytes:
        rpc = await self._open(context)
        call = PartsCall(rpc.router, rpc.envelope, request)
        upload: asyncio.Task[None] | None = None
        try:
            rpc.router.submit(call)
            if self._method.request_streaming:
                upload = asyncio.get_running_loop().create_task(_upload(call, context))
            frame = await _write_items(call, context, self._limit)
        except asyncio.CancelledError:
            call.cancel()
            self._left(rpc, call.deadline)
            raise
        except aio.BaseError:
            # What gRPC's library says when it cannot send: the client has left a moment ago.
            call.cancel()
            self._left(rpc, call.deadline)
            return b""
        except Exception as error:  # noqa: BLE001 - border: a proxied request, or gRPC's library
            call.cancel()
            return await self._fail(rpc, context, *_status_of(error, rpc))
        finally:
            if upload is not None:
                upload.cancel()
        return await self._answer(rpc, context, frame)

    # -- beginning and end --------------------------------------------------------------------

    async def _open(self, context: Any) -> Rpc:
        try:
            return self._front.open(self._service, self._method, self._path, context)
        except RefusedError as refusal:
            trailing = (("request_id", _ascii(refusal.request_id)),)
            await context.abort(_CODES[refusal.code], clip(refusal.details), trailing)
            raise

    async def _answer(self, rpc: Rpc, context: Any, frame: RawFrame) -> bytes:
        if frame[0] == _ERROR:
            return await self._fail(rpc, context, *of_error_meta(decode_error(frame[4])))
        end = decode_grpc_end(frame[4]) if frame[4] else _OK
        if end.code:
            return await self._fail(rpc, context, end.code, end.details, end)
        body = raw(frame[5])
        if len(body) > self._limit:
            return await self._fail(rpc, context, *_too_large(len(body), self._limit))
        context.set_trailing_metadata(_trailing(rpc, end))
        if end.compression and frame[0] == _RESPONSE:
            context.set_compression(_COMPRESSIONS[end.compression])
            # gRPC's server forgets it when it sends metadata and message in one go.
            await context.send_initial_metadata(())
        self._front.close(rpc, GrpcCode.OK)
        return bytes(body)

    async def _fail(
        self, rpc: Rpc, context: Any, code: int, details: str, end: GrpcEnd = _OK
    ) -> bytes:
        self._front.close(rpc, code)
        await context.abort(_CODES[code], details, _trailing(rpc, end))
        raise AssertionError("abort raises")

    def _left(self, rpc: Rpc, deadline: float | None) -> None:
        """The client has left, or its own deadline has passed, which looks the same from here."""
        is_late = deadline is not None and rpc.router.loop.time() >= deadline
        self._front.close(rpc, GrpcCode.DEADLINE_EXCEEDED if is_late else GrpcCode.CANCELLED)


async def _write_items(call: PartsCall, context: Any, limit: int) -> RawFrame:
    """Pass on what the replica sends, as fast as the client takes it; return the last frame."""
    while True:
        frame = await call.next_frame()
        kind = frame[0]
        if kind == _ITEM:
            body = raw(frame[5])
            if len(body) > limit:
                code, details = _too_large(len(body), limit)
                raise gRPCStatusError(None, code, details)
            await context.write(bytes(body))
        elif kind == _START:
            context.set_compression(_COMPRESSIONS[decode_credit(frame[4])])
        else:
            return frame


async def _upload(call: PartsCall, context: Any) -> None:
    """Pass on what the client sends, as fast as the replica takes it."""
    with contextlib.suppress(aio.BaseError):  # The request is over: nobody reads any more.
        while (message := await context.read()) is not aio.EOF:
            if not await call.send(message):
                return
        # A client that leaves ends its stream as well, and a handler must not take what came until
        # then for everything. That it left is the next thing that gRPC's library tells, before the
        # answer to any later question; some turns of the loop after that this task is cancelled.
        await context.read()
        for _ in range(_TURNS_TO_CANCEL):
            await asyncio.sleep(0)
        await call.end()


def _too_large(size: int, limit: int) -> tuple[int, str]:
    text = f"The answer has a message of {size} bytes; max_message_bytes is {limit}."
    return GrpcCode.RESOURCE_EXHAUSTED, text


def _status_of(error: Exception, rpc: Rpc) -> tuple[int, str]:
    code = code_of(error)
    if code == GrpcCode.INTERNAL:
        _log.error("Request %s %s failed: %s", rpc.envelope.request_id, rpc.path, error)
    return code, details_of(error)


def _trailing(rpc: Rpc, end: GrpcEnd) -> tuple[tuple[str, str | bytes], ...]:
    envelope = rpc.envelope
    request_id = ("request_id", _ascii(envelope.request_id))
    if envelope.attempt:
        return (request_id, ("x-remora-attempts", str(envelope.attempt + 1)), *end.trailing)
    return (request_id, *end.trailing)


def _ascii(text: str) -> str:
    return text.encode("ascii", "backslashreplace").decode()
