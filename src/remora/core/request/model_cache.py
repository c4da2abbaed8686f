"""Which models a replica holds: what to load, what to unload, who waits, who gets what.

Theory of operation. A model has a *place* from the moment its load begins until its unloading has
ended; places, their bytes, and loads at work are bounded. Whoever asks for a model gives a *user*:
a request, which uses what it was given until it ends. A model that nobody has is *wanted*: wanted
models wait in one queue, first come, first served, and each model is loaded once however many
ask. Room is made by unloading the least recently asked-for model that is neither pinned nor used.

- When all are used, the least recently asked-for one is *closing*: it goes on for those who use
  it, and everybody else who asks for it waits in the queue. Without that, requests for models
  that are here could keep those for another one out for ever.
- A user that waits in the queue itself would wait for itself, or for another one that waits for
  it. So when every user of every model waits, a model goes in spite of its users: one whose users
  are those that are served next, if there is one.
- When only pinned models are left, there never will be room: those who wait are refused.

Rules: pure. Each method returns what is to be done now, in this order; the shell reports the ends
of loads and unloadings. At most one place for a model, at most one load of it at a time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Limits:
    """What a cache may hold.

    Attributes:
        max_models: places; None: any number.
        max_bytes: of all places together; None: any number.
        max_loads: loads and unloadings at work at a time, >= 1.
    """

    max_models: int | None = 3
    max_bytes: int | None = None
    max_loads: int = 1


class Ticket:
    """One wait for a model. Equal only to itself.

    Attributes:
        model_id: which one.
        user: who will use it; None: nobody who is remembered, or who was and has ended meanwhile.
    """

    __slots__ = ("model_id", "user")

    def __init__(self, model_id: str, user: Hashable | None) -> None:
        self.model_id = model_id
        self.user = user


@dataclass(frozen=True, slots=True)
class Load:
    """Begin to load; report `on_loaded` or `on_load_failed`."""

    model_id: str


@dataclass(frozen=True, slots=True)
class StopLoading:
    """Cancel the load: nobody waits for it. Report its end all the same."""

    model_id: str


@dataclass(frozen=True, slots=True)
class Unload:
    """Unload; report `on_unloaded`."""

    model_id: str


@dataclass(frozen=True, slots=True)
class Give:
    """The model is here: hand it out."""

    ticket: Ticket


@dataclass(frozen=True, slots=True)
class Refuse:
    """There is no room for the model and none will come."""

    ticket: Ticket
    reason: str


Action: TypeAlias = Load | StopLoading | Unload | Give | Refuse


class _State(Enum):
    LOADING = "loading"
    LOADED = "loaded"
    #: Its unloading, or the end of its cancelled load, is awaited.
    LEAVING = "leaving"


class _Place:
    """A model that takes room."""

    __slots__ = ("num_bytes", "state", "tickets", "users")

    def __init__(self, num_bytes: int, tickets: list[Ticket]) -> None:
        self.state = _State.LOADING
        self.num_bytes = num_bytes
        self.tickets = tickets
        self.users: set[Hashable] = set()


class ModelCache:
    """The models of one loader.

    Invariants: at most `max_models` places and `max_bytes` bytes; at most `max_loads` of them
    loading or leaving by order of this class (a cancelled load counts until it ends); what is
    pinned, or used by somebody who does not wait for room, is never unloaded.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        #: Least recently asked for first.
        self._places: OrderedDict[str, _Place] = OrderedDict()
        #: Wanted models without a place, first come first, each with its size.
        self._queue: OrderedDict[str, tuple[int, list[Ticket]]] = OrderedDict()
        self._uses: dict[Hashable, set[str]] = {}
        self._pins: set[str] = set()
        self._closing: str | None = None

    # -- what can be seen -------------------------------------------------------------------

    @property
    def loaded(self) -> list[str]:
        """Models that are here, least recently asked for first."""
        return [name for name, p in self._places.items() if p.state is _State.LOADED]

    @property
    def held(self) -> list[str]:
        """Models that are here or will be: loaded, loading or wanted; the most recent last."""
        held = [name for name, p in self._places.items() if p.state is not _State.LEAVING]
        return held + [name for name in self._queue if name not in held]

    @property
    def pinned(self) -> frozenset[str]:
        """Models that are never unloaded."""
        return frozenset(self._pins)

    @property
    def num_places(self) -> int:
        """Models that take room, those that come and go too."""
        return len(self._places)

    @property
    def num_bytes(self) -> int:
        """Bytes of all places."""
        return sum(place.num_bytes for place in self._places.values())

    @property
    def num_waiting(self) -> int:
        """Wanted models that have no place yet."""
        return len(self._queue)

    # -- what callers want --------------------------------------------------------------------

    def take(self, model_id: str, user: Hashable | None) -> bool:
        """Use a model that is here, at once; False: it is not here for this user: `ask`."""
        place = self._places.get(model_id)
        if place is None or place.state is not _State.LOADED:
            return False
        if model_id != self._closing:
            self._places.move_to_end(model_id)
        elif user not in place.users:
            return False
        if user is not None and user not in place.users:
            self._use(model_id, place, user)
        return True

    def ask(
        self, model_id: str, user: Hashable | None, num_bytes: int = 0
    ) -> tuple[Ticket, list[Action]]:
        """Wait for a model that `take` did not give.

        Args:
            model_id: which one.
            user: who will use it until `release`; None: nobody is remembered as its user.
            num_bytes: how much it takes, when bytes are limited.
        """
        ticket = Ticket(model_id, user)
        place = self._places.get(model_id)
        if place is not None and place.state is _State.LOADING:
            place.tickets.append(ticket)
            self._places.move_to_end(model_id)
            return ticket, []
        self._queue.setdefault(model_id, (num_bytes, []))[1].append(ticket)
        return ticket, self._settle()

    def give_up(self, ticket: Ticket) -> list[Action]:
        """Somebody waits no longer. Harmless for a ticket that has had its end."""
        model_id = ticket.model_id
        place = self._places.get(model_id)
        if place is not None and ticket in place.tickets:
            place.tickets.remove(ticket)
            if place.tickets:
                return []
            place.state = _State.LEAVING
            return [StopLoading(model_id)]
        _, tickets = self._queue.get(model_id, (0, []))
        if ticket not in tickets:
            return []
        tickets.remove(ticket)
        if not tickets:
            del self._queue[model_id]
        return self._settle()

    def release(self, user: Hashable) -> list[Action]:
        """A user has ended: it uses nothing any more, nor what it still waits for.

        Who waits may be work that it left behind; that gets its model, but ends nobody knows when.
        """
        for ticket in self._open_tickets():
            if ticket.user == user:
                ticket.user = None
        models = self._uses.pop(user, ())
        for model_id in models:
            self._places[model_id].users.discard(user)
        return self._settle() if models and self._queue else []

    def pin(self, model_id: str) -> list[Action]:
        """Never unload this model, once it is here.

        Raises:
            ValueError: as many are pinned as there are places.
        """
        limit = self.limits.max_models
        if limit is not None and model_id not in self._pins and len(self._pins) >= limit:
            raise ValueError(
                f"{model_id!r} cannot be pinned: {len(self._pins)} models are, and there is room "
                f"for {limit} (max_num_models_per_replica). Unpin one or raise the limit."
            )
        self._pins.add(model_id)
        return self._settle()

    def unpin(self, model_id: str) -> list[Action]:
        """Let this model go when its turn comes. Harmless for one that is not pinned."""
        self._pins.discard(model_id)
        return self._settle()

    def stop(self) -> list[Action]:
        """Nobody waits any longer, and nothing is loaded from now on."""
        self._queue.clear()
        stopped: list[Action] = []
        for model_id, place in self._places.items():
            if place.state is _State.LOADING:
                place.tickets = []
                place.state = _State.LEAVING
                stopped.append(StopLoading(model_id))
        return stopped

    # -- what became of actions ---------------------------------------------------------------

    def on_loaded(self, model_id: str) -> list[Action]:
        """A load has ended well, perhaps in spite of its cancellation."""
        place = self._places[model_id]
        place.state = _State.LOADED
        given = self._give(model_id, place, place.tickets)
        return [*given, *self._settle()]

    def on_load_failed(self, model_id: str) -> tuple[list[Ticket], list[Action]]:
        """A load has failed or was cancelled; returns also who waited for it."""
        tickets = self._places.pop(model_id).tickets
        return tickets, self._settle()

    def on_unloaded(self, model_id: str) -> list[Action]:
        """An unloading has ended, well or not: its room is free."""
        place = self._places.pop(model_id)
        for user in place.users:
            if models := self._uses.get(user):
                models.discard(model_id)
        return self._settle()

    def _open_tickets(self) -> Iterator[Ticket]:
        for _, tickets in self._queue.values():
            yield from tickets
        for place in self._places.values():
            yield from place.tickets

    # -- decisions ----------------------------------------------------------------------------

    def _use(self, model_id: str, place: _Place, user: Hashable) -> None:
        place.users.add(user)
        self._uses.setdefault(user, set()).add(model_id)

    def _give(self, model_id: str, place: _Place, tickets: list[Ticket]) -> list[Action]:
        given: list[Action] = [Give(ticket) for ticket in tickets]
        for ticket in tickets:
            if ticket.user is not None:
                self._use(model_id, place, ticket.user)
        place.tickets = []
        return given

    def _settle(self) -> list[Action]:
        """Serve the queue as far as room and the limit of loads allow."""
        actions: list[Action] = []
        self._closing = None
        goes_on = True
        for model_id, (num_bytes, tickets) in list(self._queue.items()):
            place = self._places.get(model_id)
            if place is not None and place.state is _State.LOADED and model_id != self._closing:
                del self._queue[model_id]
                self._places.move_to_end(model_id)
                actions += self._give(model_id, place, tickets)
            elif goes_on:
                # Behind one that has to wait, nobody takes the room that it waits for.
                goes_on = self._serve(model_id, num_bytes, tickets, actions)
        return actions

    def _serve(
        self, model_id: str, num_bytes: int, tickets: list[Ticket], actions: list[Action]
    ) -> bool:
        """Bring the first of the queue nearer to its model; False: it has to wait."""
        busy = sum(place.state is not _State.LOADED for place in self._places.values())
        if busy >= self.limits.max_loads:
            return False
        if model_id not in self._places and self._fits(num_bytes, self._places.values()):
            del self._queue[model_id]
            self._places[model_id] = _Place(num_bytes, tickets)
            actions.append(Load(model_id))
            return True
        staying = [(n, p) for n, p in self._places.items() if p.state is not _State.LEAVING]
        if self._fits(num_bytes, (place for _, place in staying)):
            return False  # The room it needs is on its way.
        movable = [(name, place) for name, place in staying if name not in self._pins]
        if not movable:
            del self._queue[model_id]
            actions += [Refuse(ticket, self._no_room(num_bytes)) for ticket in tickets]
            return True
        victim = self._victim(movable, {ticket.user for ticket in tickets})
        if victim is not None:
            self._places[victim].state = _State.LEAVING
            actions.append(Unload(victim))
        return False

    def _victim(
        self, movable: list[tuple[str, _Place]], next_users: set[Hashable | None]
    ) -> str | None:
        """Choose what goes; when nothing can, choose what closes instead, and return None."""
        loaded = [(name, place) for name, place in movable if place.state is _State.LOADED]
        for name, place in loaded:
            if not place.users:
                return name
        waiting = {ticket.user for _, tickets in self._queue.values() for ticket in tickets}
        active = [name for name, place in loaded if not place.users <= waiting]
        if active:
            self._closing = active[0]
            return None
        if len(loaded) < len(movable):
            return None  # What loads now will be used, and then let go.
        own = [name for name, place in loaded if place.users <= next_users]
        return (own or [name for name, _ in loaded])[0]

    def _fits(self, num_bytes: int, beside: Iterable[_Place]) -> bool:
        """Whether there is room for one more beside these."""
        sizes = [place.num_bytes for place in beside]
        max_models, max_bytes = self.limits.max_models, self.limits.max_bytes
        return (max_models is None or len(sizes) < max_models) and (
            max_bytes is None or sum(sizes) + num_bytes <= max_bytes
        )

    def _no_room(self, num_bytes: int) -> str:
        pinned = [place.num_bytes for name, place in self._places.items() if name in self._pins]
        limits = self.limits
        if limits.max_models is not None and len(pinned) >= limits.max_models:
            return f"all {limits.max_models} places (max_num_models_per_replica) hold pinned models"
        return (
            f"it takes {num_bytes} bytes, and of {limits.max_bytes} (max_bytes_per_replica) "
            f"pinned models take {sum(pinned)}"
        )
