"""Gangs: replicas that come and go together; see `docs/resources.md`."""

from __future__ import annotations

from remora.context import GangContext

__all__ = ["GangContext"]
