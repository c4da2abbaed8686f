"""Calls whose arguments have to arrive first."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from functools import partial
from typing import TYPE_CHECKING, Any

from remora.calls.pending import FailedCall, FindRouter, MakeBody, in_time_of, submit_now
from remora.errors import RequestCancelledError
from remora.router.call import CallState, StreamCall, UnaryCall, decode_value
from remora.wire.framing import RawFrame
from remora.wire.messages import Envelope

if TYPE_CHECKING:
    from remora.request_context import Cancellable
    from remora.router.router import Router


class ChainedCall:
    """A call that is sent from a loop once its arguments are there."""

    __slots__ = ("_call", "_cancelled", "_envelope", "_member", "_owners", "_task", "loop")

    def __init__(
        self,
        find_router: FindRouter,
        loop: asyncio.AbstractEventLoop,
        envelope: Envelope,
        make_body: MakeBody,
        owners: set[Cancellable] | None,
        member: Cancellable | None = None,
    ) -> None:
        """Begin to wait for the arguments. Must be called on `loop`.

        Args:
            find_router: of what is called.
            loop: the running one.
            envelope: of the call.
            make_body: of its arguments.
            owners: calls to be cancelled with the request that this one is made for.
            member: what stands for this call in `owners`; None: the call itself.

        Raises:
            InstanceError: this process is in no instance.
        """
        router = find_router(loop)
        self.loop = loop
        self._envelope = envelope
        self._call: UnaryCall | StreamCall | FailedCall | None = None
        self._cancelled = False
        self._owners = owners
        self._member = member or self
        if owners is not None:
            owners.add(self._member)
        self._task = loop.create_task(self._submit(router, make_body))

    async def _submit(self, router: Router, make_body: MakeBody) -> None:
        """Send the call. A failure is kept as a call that fails: nobody may ever ask."""
        call: UnaryCall | StreamCall | None = None
        try:
            from remora.router.process import routing_client_behind

            behind = routing_client_behind(self.loop)
            if behind is not None:
                await behind.wait_caught_up()
            body, upload = await in_time_of(self._envelope, make_body())
            call = self._call = submit_now(router, self._envelope, body, None)
            if upload is not None:
                call.attach(upload)
        except Exception as error:  # noqa: BLE001 - border: the user's exception of another call
            self._call = FailedCall(error)
        finally:
            if self._owners is not None:
                leave = partial(self._owners.discard, self._member)
                if call is None or call.state is CallState.DONE:
                    leave()
                else:
                    call.on_close = leave

    def on_submitted(self, callback: Callable[[], object]) -> None:
        """Call back when the call was sent or will never be."""
        self._task.add_done_callback(lambda _: callback())

    async def _submitted(self) -> UnaryCall | StreamCall | FailedCall:
        try:
            await asyncio.shield(self._task)
        except asyncio.CancelledError:
            if self._cancelled:
                raise RequestCancelledError(self._envelope.request_id) from None
            self.cancel()
            raise
        assert self._call is not None
        return self._call

    @property
    def request_id(self) -> str:
        """Of the request."""
        return self._envelope.request_id

    def __await__(self) -> Generator[Any, None, Any]:
        return decode_value((yield from self.frame()))

    def frame(self) -> Generator[Any, None, RawFrame]:
        """Wait for the answer as it came."""
        call = yield from self._submitted().__await__()
        assert not isinstance(call, StreamCall)
        return (yield from call.frame())

    async def __anext__(self) -> Any:
        call = await self._submitted()
        assert not isinstance(call, UnaryCall)
        return await call.__anext__()

    async def next_unopened(self) -> Any:
        """The next item as the bytes that it came in."""
        call = await self._submitted()
        assert not isinstance(call, UnaryCall)
        return await call.next_unopened()

    def has_next(self) -> bool:
        """The next `anext` does not wait."""
        call = self._call
        return call is not None and not isinstance(call, UnaryCall) and call.has_next()

    def cancel(self) -> None:
        """Give the call up, sent or not. Idempotent."""
        self._cancelled = True
        if self._call is not None:
            self._call.cancel()
        else:
            self._task.cancel()
