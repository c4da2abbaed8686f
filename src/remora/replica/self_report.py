"""What the user's code says of itself to those who choose between replicas.

`record_replica_metadata` is asked once, before the first request; `record_routing_stats` again and
again. Both go out in the replica's notice.

Statistics that fail or take too long are no news: the last ones stay in force (`recording.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from remora.config import RequestRouterConfig
from remora.errors import ReplicaStartError
from remora.observe.background import run_beside
from remora.observe.tracebacks import user_traceback
from remora.replica.recording import Recording
from remora.replica.user_code import UserCode

_METADATA = "record_replica_metadata"
_STATS = "record_routing_stats"


class SelfReport:
    """Asks the user's code of one replica, and announces what it says."""

    def __init__(self, announce: Callable[..., None]) -> None:
        self._announce = announce
        self._config = RequestRouterConfig()
        self._code: UserCode | None = None
        self._task: asyncio.Task[None] | None = None
        #: The statistics, whatever the period.
        self._recording: Recording | None = None

    async def begin(self, code: UserCode, config: RequestRouterConfig) -> None:
        """Announce the metadata, and go on announcing statistics.

        Raises:
            ReplicaStartError: the user's `record_replica_metadata` failed.
        """
        self._code, self._config = code, config
        self._recording = Recording(code, _STATS, "routers keep the last statistics")
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
        code, recording = self._code, self._recording
        if code is None or recording is None or code.kind_of_hook(_STATS) is None:
            return
        loop = asyncio.get_running_loop()
        self._task = run_beside(loop, self._record(code, recording), f"the asking of {_STATS}")

    async def _record(self, code: UserCode, recording: Recording) -> None:
        while True:
            limit_s = self._config.request_routing_stats_timeout_s
            limit = f"request_routing_stats_timeout_s={limit_s:g}"
            try:
                stats = await recording.ask(code.record, limit_s, limit)
                if stats is not None:
                    self._announce(stats=stats)
                recording.note_success()
            except (Exception, SystemExit) as error:  # noqa: BLE001 - border: user code
                recording.note_failure(error)
            await asyncio.sleep(self._config.request_routing_stats_period_s)
