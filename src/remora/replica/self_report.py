"""What the user's code says of itself to those who choose between replicas.

`record_replica_metadata` is asked once, before the first request; `record_routing_stats` again and
again. Both go out in the replica's notice.

The border to that code: statistics that fail or take too long are logged, once until they work
again; the last ones stay in force.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from remora.config import RequestRouterConfig
from remora.errors import ReplicaStartError
from remora.observe.background import run_beside
from remora.observe.tracebacks import user_traceback
from remora.replica.user_code import MethodKind, UserCode

_log = logging.getLogger("remora.replica")
_METADATA = "record_replica_metadata"
_STATS = "record_routing_stats"


class SelfReport:
    """Asks the user's code of one replica, and announces what it says."""

    def __init__(self, announce: Callable[..., None]) -> None:
        self._announce = announce
        self._config = RequestRouterConfig()
        self._code: UserCode | None = None
        self._task: asyncio.Task[None] | None = None
        #: A plain function that runs on although its time was up.
        self._late: asyncio.Task[dict[str, Any] | None] | None = None
        self._is_failing = False

    async def begin(self, code: UserCode, config: RequestRouterConfig) -> None:
        """Announce the metadata, and go on announcing statistics.

        Raises:
            ReplicaStartError: the user's `record_replica_metadata` failed.
        """
        self._code, self._config = code, config
        try:
            metadata = await code.record(_METADATA)
        except (Exception, SystemExit) as error:  # border: user code
            raise ReplicaStartError(
                f"A replica of {code.deployment} could not start: {_METADATA} failed.\n"
                f"{user_traceback(error)}"
            ) from error
        if metadata is not None:
            self._announce(metadata=metadata)
        self._start()

    def follow(self, config: RequestRouterConfig) -> None:
        """Take another period and timeout, from now on."""
        period_s = self._config.request_routing_stats_period_s
        self._config = config
        if self._task is not None and config.request_routing_stats_period_s != period_s:
            self._task.cancel()
            self._start()

    def stop(self) -> None:
        """Ask no more."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    def _start(self) -> None:
        if self._code is not None and self._code.kind_of_hook(_STATS) is not None:
            loop = asyncio.get_running_loop()
            self._task = run_beside(loop, self._record(self._code), f"the asking of {_STATS}")

    async def _record(self, code: UserCode) -> None:
        while True:
            if self._late is not None:
                await asyncio.wait((self._late,))
                self._late = None
            try:
                stats = await self._ask(code)
                if stats is not None:
                    self._announce(stats=stats)
                self._is_failing = False
            except (Exception, SystemExit) as error:  # noqa: BLE001 - border: user code
                if not self._is_failing:
                    self._is_failing = True
                    _log.warning(
                        "%s: %s failed; routers keep the last statistics. Said once until it works "
                        "again.\n%s",
                        code.deployment,
                        _STATS,
                        user_traceback(error).rstrip(),
                    )
            await asyncio.sleep(self._config.request_routing_stats_period_s)

    async def _ask(self, code: UserCode) -> dict[str, Any] | None:
        timeout_s = self._config.request_routing_stats_timeout_s
        asked = asyncio.get_running_loop().create_task(code.record(_STATS))
        try:
            done, _ = await asyncio.wait((asked,), timeout=timeout_s)
        except asyncio.CancelledError:
            asked.cancel()
            raise
        if done:
            return asked.result()
        if code.kind_of_hook(_STATS) is MethodKind.ASYNC:
            asked.cancel()
        else:
            # A thread cannot be stopped: nobody is asked again before this one has ended.
            self._late = asked
        raise TimeoutError(f"it did not end within request_routing_stats_timeout_s={timeout_s:g}")
