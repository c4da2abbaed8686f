"""Nearness: the same node, then the same zone, then anywhere."""

from __future__ import annotations

from collections.abc import Sequence

from remora.core.routing import C


def rank(candidates: Sequence[C], node_id: str, availability_zone: str) -> list[list[C]]:
    """Sort candidates into ranks, the nearest first; empty ranks are left out. Pure.

    Args:
        candidates: replicas.
        node_id: the node that the caller is on.
        availability_zone: its zone; empty: unknown, so nobody is known to share it.
    """
    ranks: tuple[list[C], list[C], list[C]] = ([], [], [])
    for candidate in candidates:
        if candidate.node_id == node_id:
            ranks[0].append(candidate)
        elif availability_zone and candidate.availability_zone == availability_zone:
            ranks[1].append(candidate)
        else:
            ranks[2].append(candidate)
    return [rank for rank in ranks if rank]
