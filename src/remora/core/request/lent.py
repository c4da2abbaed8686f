"""What one connection has lent: which files the other side reads, and which blocks of them.

A block may be one's own, or one that came over another connection and is lent on. It makes no
difference here, because who lends a block on holds it until the reader has returned it, and only
then returns it itself. So each knows those alone that it has lent to, and the owner's place is
used again when the last reader at the end of the chain is done.

Who is lost without having returned a block may live on and read it. Then the block is forfeited:
its place is never used again. Who had lent it on tells the one that it had it from.

Rules: pure. Invariant: what is in `lent` was sent as lent and not returned.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Generic, TypeVar

#: A file, by the number that this connection knows it by, and an offset in it.
Place = tuple[int, int]
_Block = TypeVar("_Block")


class Way(Enum):
    """How a block goes to the other side."""

    LEND = auto()
    #: As a copy; meanwhile the other side is asked whether it can read the file.
    ASK = auto()
    #: As a copy.
    COPY = auto()


class Lent(Generic[_Block]):
    """The books of one connection.

    Attributes:
        readable: by file: the other side reads it; None: it was asked and has not answered.
        lent: what the other side may be reading, and how often it was lent.
    """

    __slots__ = ("_is_lost", "lent", "readable")

    def __init__(self) -> None:
        self._is_lost = False
        self.readable: dict[int, bool | None] = {}
        self.lent: dict[Place, tuple[_Block, int]] = {}

    def way(self, place: Place, writable: bool) -> Way:
        """How to send a block.

        Args:
            place: of the block.
            writable: the reader may write to its view. All views of a place in one process are
                the same memory, so there it is lent once at a time.
        """
        if self._is_lost:
            return Way.COPY
        readable = self.readable.get(place[0], Way.ASK)
        if readable is Way.ASK:
            return Way.ASK
        if not readable or (writable and place in self.lent):
            return Way.COPY
        return Way.LEND

    def ask(self, segment: int) -> None:
        """Note that the other side was asked about a file."""
        self.readable[segment] = None

    def answer(self, segment: int, readable: bool) -> None:
        """Note what it says. A file that was withdrawn in the meantime stays so."""
        if self.readable.get(segment, False) is None:
            self.readable[segment] = readable

    def withdraw(self, segment: int) -> bool:
        """Lend nothing more of a file; True: the other side has to be told."""
        self.readable[segment] = False
        return not self._is_lost

    def lend(self, place: Place, block: _Block) -> None:
        """Note that a block was lent, once more if it was before."""
        _, count = self.lent.get(place, (block, 0))
        self.lent[place] = block, count + 1

    def take_back(self, place: Place) -> _Block:
        """Note that a block was returned, once.

        Raises:
            KeyError: it was not lent.
        """
        block, count = self.lent.pop(place)
        if count > 1:
            self.lent[place] = block, count - 1
        return block

    def lose(self) -> list[_Block]:
        """Note that the other side is out of reach; returns what is forfeited by that."""
        self._is_lost = True
        lent, self.lent = self.lent, {}
        return [block for block, _ in lent.values()]
