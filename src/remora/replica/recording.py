"""Hooks of the user's code that are asked again and again for what they have counted.

The border to that code: what fails or takes too long is logged, once until it works again, and a
plain function that goes on after its time is not asked again before it has ended.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from remora.observe.tracebacks import user_traceback
from remora.replica.methods import MethodKind
from remora.replica.user_code import UserCode
from remora.types import Seconds

T = TypeVar("T")

_log = logging.getLogger("remora.replica")


class Recording:
    """One such hook of one replica."""

    def __init__(self, code: UserCode, name: str, meanwhile: str) -> None:
        """Make it.

        Args:
            code: whose hook it is.
            name: of the hook.
            meanwhile: for people: what goes on while it fails.
        """
        self._code = code
        self._name = name
        self._meanwhile = meanwhile
        #: A plain function that runs on although its time was up.
        self._late: asyncio.Task[Any] | None = None
        self._is_failing = False

    async def ask(
        self, run: Callable[[str], Coroutine[Any, Any, T]], limit_s: Seconds, limit: str
    ) -> T:
        """Run the hook.

        Args:
            run: how, by its name.
            limit_s: what it may take.
            limit: that time, for people.

        Raises:
            TimeoutError: it has not ended in time.
            Exception: what it raised.
        """
        if self._late is not None:
            await asyncio.wait((self._late,))
            self._late = None
        asked = asyncio.get_running_loop().create_task(run(self._name))
        try:
            done, _ = await asyncio.wait((asked,), timeout=limit_s)
        except asyncio.CancelledError:
            asked.cancel()
            raise
        if done:
            return asked.result()
        if self._code.kind_of_hook(self._name) is MethodKind.ASYNC:
            asked.cancel()
        else:
            # A thread cannot be stopped.
            self._late = asked
        raise TimeoutError(f"it did not end within {limit}")

    def note_success(self) -> None:
        """It works: the next failure is worth saying."""
        self._is_failing = False

    def note_failure(self, error: BaseException) -> None:
        """Log a failure, unless the time before was one as well."""
        if self._is_failing:
            return
        self._is_failing = True
        _log.warning(
            "%s: %s failed; %s. Said once until it works again.\n%s",
            self._code.deployment,
            self._name,
            self._meanwhile,
            user_traceback(error).rstrip(),
        )
