"""Who has seen the beginning of a text before, in bounded memory.

A text is cut into blocks, and each block is known by a hash over it and everything before it. So
the blocks that two texts share at their beginning have the same hashes, and a set of hashes for
each owner is all that is kept: no text, and no tree of nodes.

Rules: pure data. What was used last is forgotten last, and the end of a text before its beginning.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from hashlib import blake2b

#: Matches are found in steps of this size. Shorter beginnings match nothing.
BLOCK_CHARS = 32


def blocks_of(text: str) -> list[bytes]:
    """Hash each full block of a text together with all before it. Pure."""
    chain = blake2b(digest_size=8)
    hashes = []
    for end in range(BLOCK_CHARS, len(text) + 1, BLOCK_CHARS):
        chain.update(text[end - BLOCK_CHARS : end].encode("utf-8", "surrogatepass"))
        hashes.append(chain.copy().digest())
    return hashes


class PrefixTree:
    """Beginnings of texts by owner."""

    __slots__ = ("_owners",)

    def __init__(self) -> None:
        self._owners: dict[str, OrderedDict[bytes, None]] = {}

    def keep(self, owners: Iterable[str]) -> None:
        """Know these owners, and forget the others with all that they have seen."""
        owners = set(owners)
        for gone in [owner for owner in self._owners if owner not in owners]:
            del self._owners[gone]
        for owner in owners:
            self._owners.setdefault(owner, OrderedDict())

    def add(self, text: str, owner: str) -> None:
        """Note that `owner` has seen a text; unknown owners are ignored."""
        seen = self._owners.get(owner)
        if seen is None:
            return
        # From the end: the beginning, which more texts share, is then the last to be forgotten.
        for block in reversed(blocks_of(text)):
            seen[block] = None
            seen.move_to_end(block)

    def match(self, text: str) -> tuple[int, list[str]]:
        """Find those who have seen most of the beginning of a text.

        Returns:
            how many characters that is, and the owners; with 0 characters all of them.
        """
        blocks = blocks_of(text)
        best = 0
        owners: list[str] = []
        for owner, seen in self._owners.items():
            count = 0
            for block in blocks:
                if block not in seen:
                    break
                count += 1
            if count > best:
                best, owners = count, []
            if count == best:
                owners.append(owner)
        return best * BLOCK_CHARS, owners

    def chars(self, owner: str) -> int:
        """How many characters are kept of an owner."""
        return len(self._owners.get(owner, ())) * BLOCK_CHARS

    def emptiest(self) -> list[str]:
        """The owners of whom the least is kept."""
        least = min((len(seen) for seen in self._owners.values()), default=0)
        return [owner for owner, seen in self._owners.items() if len(seen) == least]

    def evict(self, threshold_chars: int, target_chars: int) -> None:
        """Forget what was used longest ago, of every owner above the threshold, down to the target."""
        for seen in self._owners.values():
            if len(seen) * BLOCK_CHARS > threshold_chars:
                while len(seen) * BLOCK_CHARS > target_chars:
                    seen.popitem(last=False)
