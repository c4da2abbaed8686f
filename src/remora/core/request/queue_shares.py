"""How the places in one deployment's queue are shared out among its routers.

`max_queued_requests` holds for a deployment, and each router has a queue of its own. So the
controller leases the places: every router may let as many wait as its share says, and refuses
the rest at once, without asking anybody. Shares follow demand: what one router does not use goes
to another that says it needs more.

Theory of operation: a share that shrinks stays on the books as it was until its router has said
that it applied the smaller one and holds no more than that; only then is the difference given
away. Each message to a router carries a version and each claim of a router says which it has
applied, so that a claim on its way is never taken for an answer to a later message.

Invariant: the places on the books never sum up to more than the limit, unless the limit itself
was lowered or a controller came after another that had given them out; then nothing is given
until they have come back.

Rules: pure; no clock. Names are those of subscribers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


def divide(limit: int, wanted: Mapping[str, int]) -> dict[str, int]:
    """Share `limit` places out: the small wishes first, what is left over to all alike. Pure.

    Args:
        limit: places, >= 0.
        wanted: how many each can use now, >= 0.

    Returns:
        a share for each; together exactly `limit`, unless nobody is there. Nobody who wants more
        than he gets gets less than another one.
    """
    order = sorted(wanted, key=lambda name: (wanted[name], name))
    shares = {}
    left = limit
    for index, name in enumerate(order):
        shares[name] = min(wanted[name], left // (len(order) - index))
        left -= shares[name]
    for index, name in enumerate(order):
        # What remains of the last ones goes to those who come first.
        extra = left // (len(order) - index)
        shares[name] += extra
        left -= extra
    return shares


#: More than there can ever be.
_UNLIMITED = 1 << 62


@dataclass
class _Holder:
    """One router on the books.

    Attributes:
        sent: the share that it was told last.
        version: of that message; 0: none was sent, `sent` is what it said it had.
        booked: places that it may believe to have, >= sent.
        wanted: places that it can use.
    """

    sent: int
    booked: int
    wanted: int
    version: int = 0


class Ledger:
    """The places of one deployment and who has them."""

    def __init__(self, limit: int, *, frozen: bool = False) -> None:
        """Open the books.

        Args:
            limit: places, >= 0.
            frozen: True: routers may hold places that are not on the books yet, so none is given
                and none is taken until `thaw`.
        """
        self.limit = limit
        self._frozen = frozen
        self._holders: dict[str, _Holder] = {}
        self._untold: set[str] = set()

    @property
    def booked(self) -> int:
        """Places that routers may believe to have."""
        return sum(holder.booked for holder in self._holders.values())

    def claim(self, name: str, held: int, wanted: int, version: int) -> None:
        """A router says what it has and what it can use.

        Args:
            name: whose claim.
            held: its share, or as many as wait in it if those are more.
            wanted: how many places it can use now.
            version: of the last message that it has applied; 0: of none.
        """
        holder = self._holders.get(name)
        if holder is None:
            self._holders[name] = _Holder(sent=held, booked=held, wanted=wanted)
            self._untold.add(name)
            return
        holder.wanted = wanted
        if version == holder.version:
            holder.booked = max(holder.sent, held)

    def leave(self, name: str) -> None:
        """A router is gone, and nothing waits in it any more."""
        self._holders.pop(name, None)
        self._untold.discard(name)

    def thaw(self) -> None:
        """Whoever holds places from before has said so by now."""
        self._frozen = False

    def step(self) -> dict[str, tuple[int, int]]:
        """Decide who is to be told what: share and version for each router that has news."""
        if not self._frozen:
            shares = divide(self.limit, {n: h.wanted for n, h in self._holders.items()})
            self._move(shares)
        told, self._untold = self._untold, set()
        for name in told:
            self._holders[name].version += 1
        return {n: (self._holders[n].sent, self._holders[n].version) for n in sorted(told)}

    def _move(self, shares: dict[str, int]) -> None:
        free = self.limit - self.booked
        for name, share in shares.items():
            holder = self._holders[name]
            # What is on its books already costs nothing; the rest must be free.
            possible = min(share, holder.booked + max(0, free))
            if possible != holder.sent:
                free -= max(0, possible - holder.booked)
                holder.sent = possible
                holder.booked = max(holder.booked, possible)
                self._untold.add(name)


class HeldShare:
    """A router's side: how many may wait in it.

    Attributes:
        limit: of the deployment as a whole; -1: none.
        share: what was leased; None: nobody has said yet, so the limit itself is what holds.
        version: of the message that said so.
    """

    __slots__ = ("_claimed", "_refused", "_stay", "limit", "share", "version")

    def __init__(self) -> None:
        self.limit = -1
        #: The bound by which those who wait came in, if it has been lowered since.
        self._stay = _UNLIMITED
        self.share: int | None = None
        self.version = 0
        self._refused = 0
        #: What the last claim wanted.
        self._claimed = 0

    @property
    def _bound(self) -> int:
        limit, share = self.limit, self.share
        if limit < 0:
            return _UNLIMITED
        return limit if share is None or share > limit else share

    def limit_to(self, limit: int, num_waiting: int) -> None:
        """The limit of the deployment is this now, and `num_waiting` wait."""
        self.limit = limit
        self._settle(num_waiting)

    def take(self, share: int, version: int, num_waiting: int) -> None:
        """This share was leased, and `num_waiting` wait: they may stay, but for a first share."""
        is_first = self.share is None
        self.share, self.version = share, version
        if is_first:
            self._stay = self._bound
        else:
            self._settle(num_waiting)

    def _settle(self, num_waiting: int) -> None:
        bound = self._bound
        if bound > self._stay or num_waiting <= bound:
            self._stay = bound

    def may_join(self, num_waiting: int) -> bool:
        """Whether one more may wait. Pure."""
        return num_waiting < self._bound

    def may_stay(self, num_waiting: int) -> bool:
        """Whether so many may go on waiting, one that has come back among them. Pure.

        They may, if the bound by which they came in had room for all of them.
        """
        return num_waiting <= self._stay

    def on_joined(self, num_waiting: int) -> bool:
        """One more waits. True: the share may soon be too small, so tell what is needed."""
        share = self.share
        return share is not None and share < self.limit and 4 * num_waiting >= 3 * share

    def on_refused(self) -> bool:
        """One was refused. True: others may have places to spare, so tell what is needed."""
        self._refused += 1
        return self.share is not None and self.share < self.limit

    def on_left(self, num_waiting: int) -> bool:
        """One waits no more. True: what is not needed any more is worth telling."""
        if self.limit < 0:
            return False
        self._settle(num_waiting)
        is_over = self.share is not None and num_waiting >= self.share
        return is_over or (self._claimed > 0 and 2 * num_waiting <= self._claimed)

    def next_claim(self, num_waiting: int) -> tuple[int, int, int]:
        """Make what to tell the controller: held, wanted and version, as `Ledger.claim` takes them.

        Refusals are counted anew from here on: each is wanted once.
        """
        wanted = min(self.limit, num_waiting + self._refused)
        self._refused = 0
        self._claimed = wanted
        held = 0 if self.share is None else max(self.share, num_waiting)
        return held, wanted, self.version

    def reset(self) -> None:
        """A new controller counts its messages from the start; what is held stays held."""
        self.version = 0
