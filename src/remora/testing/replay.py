"""Repeating what a controller observed, from its event log."""

from __future__ import annotations

from remora.core.events import LogEntry
from remora.core.reconcile import step
from remora.core.state import ControllerState


def replay(state: ControllerState, log: list[LogEntry]) -> ControllerState:
    """Take every step of `log` again; its actions are done already. Pure."""
    for entry in log:
        state = step(state, entry.events, entry.now_s).state
    return state
