"""A thousand models on eight replicas, simulated: routing and caches together, in virtual time.

What decides is the real thing (the policy of routers, the caches of replicas); what takes time
(frames, loads, work) is a list of events. The ideal is one cache of the room of all replicas
together, in which every model is loaded in no time.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

import pytest

from remora.core.request.model_cache import Action, Give, Limits, Load, ModelCache, Ticket, Unload
from remora.core.routing.power_of_two import PowerOfTwo
from remora.types import LOCAL_NODE, NodeID, ReplicaID
from remora.wire.messages import CallKind, Envelope

pytestmark = pytest.mark.slow

NUM_MODELS = 1000
NUM_REPLICAS = 8
NUM_ROUTERS = 2
PLACES = 50
#: How long things take, in seconds.
FRAME_S, LOAD_S, UNLOAD_S, WORK_S = 0.0005, 0.2, 0.005, 0.02


@dataclass(eq=False)
class Link:
    """A replica as one router knows it."""

    replica: Replica
    limit: int
    outstanding: int = 0
    others: int = 0
    model_ids: frozenset[str] = frozenset()
    node_id: NodeID = LOCAL_NODE
    availability_zone: str = ""
    is_coming: bool = False

    @property
    def replica_id(self) -> ReplicaID:
        return self.replica.replica_id

    @property
    def load(self) -> int:
        return self.outstanding + self.others


@dataclass(eq=False)
class Call:
    model_id: str
    router: Router
    link: Link | None = None


@dataclass(eq=False)
class Replica:
    world: World
    replica_id: ReplicaID
    cache: ModelCache = field(default_factory=lambda: ModelCache(Limits(max_models=PLACES)))
    ongoing: int = 0
    told: frozenset[str] = frozenset()
    links: list[Link] = field(default_factory=list)
    waiting: dict[Ticket, Call] = field(default_factory=dict)

    def begin(self, call: Call) -> None:
        self.ongoing += 1
        user: Hashable = call
        if self.cache.take(call.model_id, user):
            self.work(call)
            return
        ticket, actions = self.cache.ask(call.model_id, user)
        self.waiting[ticket] = call
        self.do(actions)

    def work(self, call: Call) -> None:
        self.world.after(self.world.rng.expovariate(1 / WORK_S), lambda: self.end(call))

    def end(self, call: Call) -> None:
        self.ongoing -= 1
        self.do(self.cache.release(call))
        call.router.on_answered(call)

    def do(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Load(model_id):
                    self.world.num_loads += 1
                    ended = self.cache.on_loaded
                    self.world.after(LOAD_S, lambda e=ended, m=model_id: self.do(e(m)))  # type: ignore[misc]
                case Unload(model_id):
                    ended = self.cache.on_unloaded
                    self.world.after(UNLOAD_S, lambda e=ended, m=model_id: self.do(e(m)))  # type: ignore[misc]
                case Give(ticket):
                    self.work(self.waiting.pop(ticket))
                case other:
                    raise AssertionError(other)
        held = frozenset(self.cache.held)
        if held != self.told:
            self.told = held
            for link in self.links:
                self.world.after(FRAME_S, lambda link=link: setattr(link, "model_ids", held))  # type: ignore[misc]


class Router:
    def __init__(self, world: World, limit: int) -> None:
        self.world = world
        self.policy = PowerOfTwo()
        self.queue: list[Call] = []
        self.links = [Link(replica, limit) for replica in world.replicas]
        for link in self.links:
            link.replica.links.append(link)
        self.policy.keep(self.links)

    def submit(self, model_id: str) -> None:
        self.queue.append(Call(model_id, self))
        self.pump()

    def pump(self) -> None:
        waiting, self.queue = self.queue, []
        for number, call in enumerate(waiting):
            able = [link for link in self.links if link.outstanding < link.limit]
            if not able:
                self.queue += waiting[number:]
                return
            envelope = Envelope("r", "app", "D", "m", CallKind.UNARY)
            envelope.multiplexed_model_id = call.model_id
            link = call.link = self.policy.choose(envelope, able, self.world.rng)
            if link is None:
                self.queue.append(call)
                continue
            link.outstanding += 1
            self.world.after(FRAME_S, lambda link=link, call=call: link.replica.begin(call))  # type: ignore[misc]

    def on_answered(self, call: Call) -> None:
        link = call.link
        assert link is not None
        link.outstanding -= 1
        link.others = max(0, link.replica.ongoing - link.outstanding)
        self.world.num_answers += 1
        self.pump()


class World:
    """Everything, with a clock."""

    def __init__(self, limit: int) -> None:
        self.rng = random.Random(7)
        self.now = 0.0
        self.num_loads = self.num_answers = 0
        self._events: list[tuple[float, int, Callable[[], object]]] = []
        self._count = itertools.count()
        self.replicas = [
            Replica(self, ReplicaID(f"default#D#{number}")) for number in range(NUM_REPLICAS)
        ]
        self.routers = [Router(self, limit) for _ in range(NUM_ROUTERS)]

    def after(self, delay_s: float, event: Callable[[], object]) -> None:
        heapq.heappush(self._events, (self.now + delay_s, next(self._count), event))

    def run(self) -> None:
        while self._events:
            self.now, _, event = heapq.heappop(self._events)
            event()


def hit_rates(exponent: float, per_s: float, count: int = 8000) -> tuple[float, float]:
    """The share of requests that cause no load, here and with an ideal cache."""
    world = World(limit=10)
    weights = list(itertools.accumulate((k + 1) ** -exponent for k in range(NUM_MODELS)))
    asked = [f"m{k}" for k in world.rng.choices(range(NUM_MODELS), cum_weights=weights, k=count)]
    warm = count // 4
    ideal: OrderedDict[str, None] = OrderedDict()
    ideal_hits = at = 0.0

    def arrive(number: int, model_id: str) -> None:
        if number == warm:
            world.num_loads = 0
        world.rng.choice(world.routers).submit(model_id)

    for number, model_id in enumerate(asked):
        at += world.rng.expovariate(per_s)
        world.after(at, lambda number=number, model_id=model_id: arrive(number, model_id))  # type: ignore[misc]
        ideal_hits += model_id in ideal and number >= warm
        ideal[model_id] = None
        ideal.move_to_end(model_id)
        if len(ideal) > NUM_REPLICAS * PLACES:
            ideal.popitem(last=False)
    world.run()
    assert world.num_answers == len(asked)
    counted = len(asked) - warm
    return 1 - world.num_loads / counted, ideal_hits / counted


@pytest.mark.parametrize(
    ("exponent", "per_s"),
    # At 150 per second and an exponent of 1, two thirds of the time of every replica are loads.
    ((1.0, 60), (1.0, 150), (1.2, 200)),
)
def test_routing_keeps_the_hit_rate_of_one_large_cache(exponent: float, per_s: float) -> None:
    here, ideal = hit_rates(exponent, per_s)
    assert here >= 0.95 * ideal


def test_more_requests_than_can_be_served_do_not_push_models_out() -> None:
    here, ideal = hit_rates(1.0, 400, count=3200)
    # Less than above, because replicas begin empty and have no time to fill.
    assert here >= 0.9 * ideal
