"""What the controller notes of its own ticks: how long they take, and how late they come.

Rules: pure but for its own numbers; every time is an argument. A tick pays for a few additions.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection

from remora.types import Seconds
from remora.wire.health import ControllerHealth, Spread

#: Ticks that are remembered.
KEPT = 100


def spread(values: Collection[float]) -> Spread | None:
    """Sum values up; None: there are none. Pure."""
    if not values:
        return None
    mean = math.fsum(values) / len(values)
    variance = math.fsum((each - mean) ** 2 for each in values) / len(values)
    return Spread(mean, math.sqrt(variance), min(values), max(values))


class Pulse:
    """The ticks of one controller.

    Attributes:
        num_ticks: how many there were.
    """

    def __init__(self) -> None:
        self.num_ticks = 0
        self._began: deque[Seconds] = deque(maxlen=KEPT)
        self._took: deque[Seconds] = deque(maxlen=KEPT)
        self._decided: deque[Seconds] = deque(maxlen=KEPT)
        self._saved: deque[Seconds] = deque(maxlen=KEPT)
        self._late: deque[Seconds] = deque(maxlen=KEPT)
        self._paused: Seconds | None = None
        self._planned_s: Seconds = 0.0
        self._slept_s: Seconds = 0.0
        self._woken: Seconds | None = None

    def woken(self, now: Seconds) -> None:
        """Something happened that the next tick is for."""
        if self._woken is None:
            self._woken = now

    def pauses(self, now: Seconds, for_s: Seconds) -> None:
        """The controller waits, for so long if nothing happens."""
        self._paused, self._planned_s = now, for_s

    def begins(self, now: Seconds) -> None:
        """A tick begins."""
        self.num_ticks += 1
        if self._paused is not None:
            self._slept_s = now - self._paused
        if self._woken is not None:
            due: Seconds | None = self._woken
        else:
            due = None if self._paused is None else self._paused + self._planned_s
        self._late.append(0.0 if due is None else max(0.0, now - due))
        self._paused = self._woken = None
        self._began.append(now)

    def ends(self, now: Seconds, decided_s: Seconds, saved_s: Seconds) -> None:
        """A tick ends, of which deciding and saving took so long."""
        self._took.append(now - self._began[-1])
        self._decided.append(decided_s)
        self._saved.append(saved_s)

    def health(
        self,
        now: Seconds,
        unix_s: float,
        started_unix_s: float,
        *,
        num_tasks: int = 0,
        reports: tuple[int, int] = (0, 0),
        memory_bytes: int = 0,
    ) -> ControllerHealth:
        """Tell how the controller is.

        Args:
            now: on the clock of the ticks.
            unix_s: the same as Unix time.
            started_unix_s: when the controller started.
            num_tasks: of its event loop.
            reports: how many came of routers, and of replicas.
            memory_bytes: of its process.
        """
        over_s = now - self._began[0] if self._began else 0.0
        return ControllerHealth(
            timestamp=unix_s,
            controller_start_time=started_unix_s,
            uptime_s=max(0.0, unix_s - started_unix_s),
            last_control_loop_time=unix_s - (now - self._began[-1]) if self._began else 0.0,
            num_control_loops=self.num_ticks,
            loop_duration_s=spread(self._took),
            loops_per_second=len(self._began) / over_s if over_s > 0 else 0.0,
            last_sleep_duration_s=self._slept_s,
            expected_sleep_duration_s=self._planned_s,
            event_loop_delay_s=self._late[-1] if self._late else 0.0,
            max_event_loop_delay_s=max(self._late, default=0.0),
            num_asyncio_tasks=num_tasks,
            deployment_state_update_duration_s=spread(self._decided),
            save_duration_s=spread(self._saved),
            handle_reports_received=reports[0],
            replica_reports_received=reports[1],
            process_memory_mb=memory_bytes / 2**20,
        )
