"""How the controller itself is, under the names that Ray Serve's users know."""

from __future__ import annotations

import msgspec

from remora.types import Seconds


class Spread(msgspec.Struct, frozen=True):
    """The latest values of something."""

    mean: float
    std: float
    min: float
    max: float


class ControllerHealth(msgspec.Struct, frozen=True, kw_only=True):
    """How the controller is. Ticks are what Ray Serve calls control loops."""

    #: Unix time of this look.
    timestamp: float
    #: Unix time.
    controller_start_time: float
    uptime_s: Seconds
    #: Unix time at which the last tick began; 0: none did.
    last_control_loop_time: float
    num_control_loops: int
    #: Of the latest ticks; none: nothing was measured yet.
    loop_duration_s: Spread | None
    #: Over the latest ticks. They come when something happens, and otherwise every few seconds.
    loops_per_second: float
    #: How long it waited before the last tick, and how long it would have.
    last_sleep_duration_s: Seconds
    expected_sleep_duration_s: Seconds
    #: From what woke it to the begin of the last tick.
    event_loop_delay_s: Seconds
    #: The longest such time of the latest ticks.
    max_event_loop_delay_s: Seconds
    num_asyncio_tasks: int
    #: Working out what is to be done.
    deployment_state_update_duration_s: Spread | None
    #: Writing what has changed to the disk, or to Ray's store.
    save_duration_s: Spread | None
    #: Reports of demand: of routers, and of replicas.
    handle_reports_received: int
    replica_reports_received: int
    process_memory_mb: float
