"""Whose turn it is to look for the instance of a cluster, and to set one up where there is none.

`remora start` may run on two nodes at the same moment. Each takes a turn first: one after the
other, the first sets the instance up, the second finds it.

Theory of operation: turns have numbers, and the last one counts. A turn is taken by adding the number
after the last, which Ray's store lets one alone do, once the last is over: its holder said so, or
the program of its holder has ended, so that one who dies half-way holds up nobody. The last
number is never removed, those before it are; so whoever adds one that was removed, because he
looked long ago, sees a later one and knows that it is not his turn.

Rules: pure. What is to be asked of the store is yielded, and its answers are sent in.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, NamedTuple, TypeAlias

import msgspec

#: What the keys of all turns begin with.
PREFIX = "turn/"


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """One turn.

    Attributes:
        holder: whose it is; nobody else has the same.
        job: Ray's id of the holder's program.
        node_id: where that runs.
        pid: of its process there.
        is_over: the holder has done what he wanted.
    """

    holder: str
    job: str
    node_id: str = ""
    pid: int = 0
    is_over: bool = False

    @staticmethod
    def key(number: int) -> str:
        """Where it is stored."""
        return f"{PREFIX}{number}"


class Numbers(NamedTuple):
    """Asks which turns are stored: their numbers, in any order."""


class Read(NamedTuple):
    """Asks for a turn; None: there is none of that number."""

    number: int


class Add(NamedTuple):
    """Stores a turn, unless there is one of that number; the answer is not looked at."""

    number: int
    turn: Turn


class Remove(NamedTuple):
    """Removes a turn."""

    number: int


class IsDead(NamedTuple):
    """Asks whether a program has ended."""

    job: str


Question: TypeAlias = Numbers | Read | Add | Remove | IsDead


def take(mine: Turn) -> Generator[Question, Any, int | Turn]:
    """Try to take a turn; returns its number, or the turn that is not over yet.

    Args:
        mine: what is stored.
    """
    while True:
        last = max((yield Numbers()), default=0)
        if last:
            found: Turn | None = yield Read(last)
            if found is None:
                continue  # Somebody has begun a later one.
            if not found.is_over and not (yield IsDead(found.job)):
                return found
        yield Add(last + 1, mine)
        # What the store said may be about a first try whose answer was lost.
        if (yield Read(last + 1)) != mine:
            continue
        numbers = yield Numbers()
        if max(numbers, default=0) > last + 1:
            yield Remove(last + 1)
            continue
        for number in numbers:
            if number <= last:
                yield Remove(number)
        return last + 1


def number_of(key: str) -> int:
    """The number of the turn that is stored there."""
    return int(key.removeprefix(PREFIX))
