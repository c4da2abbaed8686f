"""Run the lifespan of an ASGI app: its startup before the first request, its shutdown after the last.

Rules: knows ASGI's lifespan protocol and nothing of requests. Startup and shutdown run in one
task, because apps keep context managers open from the one to the other.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

logger = logging.getLogger(__name__)

#: Seconds. An app reports a failure and then raises it; nothing lies in between.
_RAISE_AFTER_REPORT_S = 1.0


class LifespanError(Exception):
    """The app's startup or shutdown failed; the cause, where there is one, is the app's own."""


class Lifespan:
    """The lifespan of one app.

    An app that does not know the protocol (it raises or returns before it answers) is served
    without, as the protocol asks.

    Concurrency: `startup` and `shutdown` are awaited on the loop that serves the app.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        #: What the app's startup left for requests: each gets a shallow copy as `scope["state"]`.
        self.state: dict[str, Any] = {}
        self._task: asyncio.Task[None] | None = None
        self._to_app: asyncio.Queue[Message] = asyncio.Queue()
        self._answer: asyncio.Future[Message] | None = None
        self._supported = False

    async def startup(self) -> None:
        """Run the app's startup to its end.

        Raises:
            LifespanError: it failed.
        """
        self._task = asyncio.create_task(self._run(), name="asgi-lifespan")
        answer = await self._ask("lifespan.startup")
        if answer is None:
            if (error := self._error()) is not None:
                logger.debug("The ASGI app does not know the lifespan protocol: %r", error)
            return
        if answer["type"] == "lifespan.startup.failed":
            raise await self._failure("startup", answer)
        self._supported = True

    async def shutdown(self) -> None:
        """Run the app's shutdown to its end. Without a startup before, nothing happens.

        Raises:
            LifespanError: it failed.
        """
        if not self._supported or self._task is None:
            return
        self._supported = False
        answer = await self._ask("lifespan.shutdown")
        if answer is None:
            # It ended without a word: fine, unless it ended in an error.
            if self._error() is not None:
                raise await self._failure("shutdown", {})
        elif answer["type"] == "lifespan.shutdown.failed":
            raise await self._failure("shutdown", answer)
        else:
            await asyncio.wait([self._task], timeout=_RAISE_AFTER_REPORT_S)

    async def _run(self) -> None:
        scope = {
            "type": "lifespan",
            "asgi": {"version": "3.0", "spec_version": "2.0"},
            "state": self.state,
        }
        await self._app(scope, self._to_app.get, self._on_send)

    async def _on_send(self, message: Message) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(message)

    async def _ask(self, event: str) -> Message | None:
        """Tell the app an event; return its answer, or None when it ended without one."""
        assert self._task is not None
        self._answer = asyncio.get_running_loop().create_future()
        self._to_app.put_nowait({"type": event})
        either: list[asyncio.Future[Any]] = [self._task, self._answer]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        return self._answer.result() if self._answer.done() else None

    def _error(self) -> BaseException | None:
        """What the app's task ended in, if it ended in an error."""
        if self._task is None or not self._task.done() or self._task.cancelled():
            return None
        return self._task.exception()

    async def _failure(self, phase: str, answer: Message) -> LifespanError:
        """Make the error of a failed phase, with the app's own exception as its cause."""
        assert self._task is not None
        await asyncio.wait([self._task], timeout=_RAISE_AFTER_REPORT_S)
        cause = self._error()
        text = str(answer.get("message", "")).strip()
        # Starlette's message is a whole traceback; with the exception at hand, one line is enough.
        reason = repr(cause) if cause is not None else text or "no reason given"
        error = LifespanError(f"The ASGI app's {phase} failed: {reason}")
        error.__cause__ = cause
        return error
