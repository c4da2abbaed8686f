"""Sends calls that cannot go out at once, and says on which loop a call lives."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from remora.calls.chained import ChainedCall
from remora.calls.pending import FailedCall, FindRouter, MakeBody, PendingCall
from remora.calls.threaded import ThreadCall
from remora.errors import RemoraError
from remora.router.call import Call
from remora.wire.messages import Envelope

if TYPE_CHECKING:
    from remora.request_context import RequestContext


def submit_later(
    find_router: FindRouter,
    loop: asyncio.AbstractEventLoop | None,
    envelope: Envelope,
    make_body: MakeBody,
    context: RequestContext | None,
) -> ChainedCall | ThreadCall | FailedCall:
    """Send a call that cannot go out at once: other responses come first, or no loop runs here.

    Args:
        find_router: of what is called.
        loop: the caller's; None: it has none.
        envelope: of the call.
        make_body: of its arguments; may add to the envelope.
        context: the request that this call is made for.
    """
    owners = None if context is None else context.children_set()
    try:
        if loop is not None:
            return ChainedCall(find_router, loop, envelope, make_body, owners)
        from remora.router.process import background_client

        return ThreadCall(find_router, background_client().loop, envelope, make_body, owners)
    except RemoraError as error:
        return FailedCall(error)


def loop_of(call: PendingCall) -> asyncio.AbstractEventLoop | None:
    """The loop that a call lives on; None: on none, it has failed already."""
    if isinstance(call, Call):
        return call.router.loop
    assert isinstance(call, FailedCall | ChainedCall | ThreadCall)
    return call.loop
