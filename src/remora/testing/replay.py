"""Repeating what a controller observed, from its event log."""

from __future__ import annotations

from msgspec.structs import replace

from remora.core.events import CallLost, HealthChecked, LogEntry
from remora.core.reconcile import step
from remora.core.state import ControllerState
from remora.types import Seconds


def replay(state: ControllerState, log: list[LogEntry]) -> ControllerState:
    """Take every step of `log` again; its actions are done already. Pure."""
    for entry in log:
        state = step(state, entry.events, entry.now_s).state
    return state


def replay_kept(log: list[LogEntry], now_s: Seconds) -> ControllerState:
    """Take the steps again of a log as a controller keeps it, which leaves out what is no news.

    Pure.

    Args:
        log: from the first event of the instance on.
        now_s: what only time brought until then has come, too.
    """
    state = ControllerState()
    for entry in [*log, LogEntry(now_s, ())]:
        _fill_in_checks(state, entry)
        state = step(state, entry.events, entry.now_s).state
    return state


def _fill_in_checks(state: ControllerState, entry: LogEntry) -> None:
    """Let health checks end whose ends the log leaves out, and those be open whose ends it has."""
    ended = {
        event.replica_id
        for event in entry.events
        if isinstance(event, HealthChecked)
        or (isinstance(event, CallLost) and event.call == "check_health")
    }
    for replica_id, activity in list(state.activity.items()):
        if replica_id in ended and not activity.call:
            changed = replace(activity, call="check_health", call_since_s=entry.now_s)
        elif replica_id not in ended and activity.call == "check_health":
            if activity.health_failures:
                continue
            changed = replace(activity, call="", health_checked_s=entry.now_s)
        else:
            continue
        state.activity[replica_id] = changed
