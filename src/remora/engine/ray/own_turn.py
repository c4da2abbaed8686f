"""Waits for this process's turn at the instance of a cluster; see `turns.py`. Blocks."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from remora.engine.ray import cluster as rays
from remora.engine.ray import turns
from remora.engine.ray.cluster import Cluster
from remora.engine.ray.turns import Turn
from remora.errors import EngineError, InstanceError
from remora.types import Seconds

_BETWEEN_LOOKS_S: Seconds = 0.1
#: That a turn is over is said again and again for so long, while Ray's head is away.
_SAY_FOR_S: Seconds = 10.0


@contextmanager
def own_turn(cluster: Cluster, limit_s: Seconds) -> Iterator[None]:
    """Wait until no other process sets up an instance in a cluster, or ends one; none does meanwhile.

    Args:
        cluster: of the instance.
        limit_s: how long to wait for the others.

    Raises:
        InstanceError: another one takes longer.
        EngineError: Ray's head does not answer.
    """
    mine = Turn(
        holder=secrets.token_hex(8), job=rays.this_job(), node_id=rays.this_node(), pid=os.getpid()
    )
    number = _wait(cluster, mine, limit_s)
    try:
        yield
    finally:
        _say_over(cluster, number, mine)


def _wait(cluster: Cluster, mine: Turn, limit_s: Seconds) -> int:
    deadline = time.monotonic() + limit_s
    while True:
        found = _ask(cluster, mine)
        if isinstance(found, int):
            return found
        if time.monotonic() >= deadline:
            raise InstanceError(
                f"Another program (pid {found.pid} on node {found.node_id[:12]}) has been starting or "
                f"ending the instance of this cluster for {limit_s:g} s. Try again when it is done; if "
                "it hangs, end it."
            )
        time.sleep(_BETWEEN_LOOKS_S)


def _ask(cluster: Cluster, mine: Turn) -> int | Turn:
    """Ask the store what `take` wants to know."""
    asking = turns.take(mine)
    answer: Any = None
    while True:
        try:
            question = asking.send(answer)
        except StopIteration as end:
            found: int | Turn = end.value
            return found
        answer = None
        match question:
            case turns.Numbers():
                answer = [turns.number_of(key) for key in cluster.keys(turns.PREFIX)]
            case turns.Read(number):
                data = cluster.get(Turn.key(number))
                answer = None if data is None else msgspec.msgpack.decode(data, type=Turn)
            case turns.Add(number, turn):
                cluster.add(Turn.key(number), msgspec.msgpack.encode(turn))
            case turns.Remove(number):
                cluster.delete(Turn.key(number))
            case turns.IsDead(job):
                answer = rays.is_over(job)


def _say_over(cluster: Cluster, number: int, mine: Turn) -> None:
    """Let the next one have its turn; that this program has ended would say so, too."""
    data = msgspec.msgpack.encode(msgspec.structs.replace(mine, is_over=True))
    deadline = time.monotonic() + _SAY_FOR_S
    while True:
        try:
            cluster.put(Turn.key(number), data)
        except EngineError:
            if time.monotonic() >= deadline:
                return
            time.sleep(_BETWEEN_LOOKS_S)
        else:
            return
