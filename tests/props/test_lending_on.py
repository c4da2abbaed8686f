"""Blocks that go through several processes, any of which may die or lose a connection at any time.

The arenas, the books and the loans are the real ones; processes, loops and connections are objects
here. Whatever happens in whatever order: nobody ever sees other bytes than those that were sent,
and when nobody holds anything any more, every place is free and every file is let go of.
"""

from __future__ import annotations

import asyncio
import gc
import mmap
import pickle
import random
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remora.transport import borrowing, lending, packing
from remora.transport.arena import Arena
from remora.transport.borrowing import Loan
from remora.transport.lending import Lending
from remora.wire import values
from remora.wire.framing import RawFrame
from remora.wire.messages import LENT, FrameKind, SegmentOffer
from remora.wire.parcel import WRITABLE, Body, Parcel

PAGE = mmap.PAGESIZE
#: On which host each process runs.
HOSTS = (0, 0, 0, 1)
_RESPONSE = int(FrameKind.RESPONSE)
_SEGMENT = int(FrameKind.SEGMENT)


class FakeLoop:
    """Keeps what is to be called, until the test lets it."""

    def __init__(self) -> None:
        self.soon: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self.late: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()

    def call_soon(self, call: Callable[..., object], *args: Any) -> object:
        self.soon.append((call, args))
        return object()

    call_soon_threadsafe = call_soon

    def call_later(self, delay_s: float, call: Callable[..., object], *args: Any) -> object:
        (self.late if delay_s > 1 else self.soon).append((call, args))
        return object()

    def is_closed(self) -> bool:
        return False


@dataclass
class Held:
    """A value that a process holds: unopened, and perhaps opened as well."""

    body: Body
    number: int
    view: memoryview | None = None
    is_written: bool = False

    def __post_init__(self) -> None:
        self.arrived = self.lent_bytes()

    def lent_bytes(self) -> list[bytes]:
        """What lies in the memory of others."""
        buffers = self.body.buffers if isinstance(self.body, Parcel) else []
        return [bytes(loan.view_on()) for loan in buffers if isinstance(loan, Loan)]

    def is_right(self) -> bool:
        """It has the bytes that were sent, or what was written here."""
        if self.view is not None:
            wanted = 255 if self.is_written else self.number
            return self.view == bytes([wanted]) * len(self.view)
        return self.lent_bytes() == self.arrived


@dataclass
class End:
    """One end of a connection."""

    process: Process
    peer: Process
    lending: Lending
    inbox: deque[tuple[int, int, bytes, int]] = field(default_factory=deque)


class Process:
    """What has an arena, and may die."""

    def __init__(self, host: int) -> None:
        self.host = host
        self.arena = Arena(32 * PAGE)
        self.loop = FakeLoop()
        self.held: list[Held] = []
        self.ends: dict[int, End] = {}


class World:
    """Four processes on two hosts, all connected."""

    def __init__(self, rng: random.Random, patch: pytest.MonkeyPatch) -> None:
        self.rng = rng
        self.running: Process | None = None
        self.number = 0
        #: How often what mattered has happened.
        self.seen: Counter[str] = Counter()
        patch.setattr(lending, "arena", lambda: self.now.arena)
        patch.setattr(packing, "arena", lambda: self.now.arena)
        patch.setattr(packing, "LEND_BYTES", PAGE)
        patch.setattr(asyncio, "get_running_loop", lambda: self.now.loop)
        patch.setattr(borrowing, "map_segment", self.map_segment(borrowing.map_segment))
        self.processes = [Process(host) for host in HOSTS]
        for a in range(len(HOSTS)):
            for b in range(a):
                self.connect(a, b)

    @property
    def now(self) -> Process:
        assert self.running is not None
        return self.running

    @contextmanager
    def acting(self, process: Process) -> Iterator[None]:
        before, self.running = self.running, process
        try:
            yield
        finally:
            self.running = before

    def map_segment(self, really: Callable[[SegmentOffer], Any]) -> Callable[[SegmentOffer], Any]:
        def map_segment(offer: SegmentOffer) -> Any:
            tokens = [s.token for p in self.near(self.now) for s in p.arena._all()]
            return really(offer) if offer.token in tokens else None

        return map_segment

    def near(self, process: Process) -> list[Process]:
        return [each for each in self.processes if each.host == process.host]

    def connect(self, a: int, b: int) -> None:
        for one, other in ((a, b), (b, a)):
            process, peer = self.processes[one], self.processes[other]

            def send(kind: int, body: bytes, one: int = one, peer: Process = peer) -> None:
                peer.ends[one].inbox.append((kind, 0, body, 0))

            with self.acting(process):
                process.ends[other] = End(process, peer, Lending(send))

    def send(self, one: int, other: int, body: Body, number: int) -> None:
        process = self.processes[one]
        flags, data = 0, body
        with self.acting(process):
            if isinstance(body, Parcel):
                is_lent, parts = process.ends[other].lending.address(body)
                flags, data = LENT if is_lent else 0, b"".join(parts)
        assert not isinstance(data, Parcel)
        self.processes[other].ends[one].inbox.append((_RESPONSE, flags, bytes(data), number))

    def deliver(self, end: End) -> None:
        kind, flags, body, number = end.inbox.popleft()
        frame: RawFrame = (kind, flags, 0, 0, b"", body)
        with self.acting(end.process):
            if flags & LENT:
                frame = end.lending.opened(frame)
            elif kind >= _SEGMENT:
                end.lending.on_frame(frame)
                return
        end.process.held.append(Held(frame[5], number))

    def turn(self, process: Process) -> bool:
        """Let the loop of a process turn once."""
        todo, process.loop.soon = process.loop.soon, deque()
        with self.acting(process):
            for call, args in todo:
                call(*args)
        return bool(todo)

    # -- what may happen ------------------------------------------------------------------------

    def walk(self, num_steps: int) -> None:
        """Let things happen at random, and see after each that nobody's bytes have changed."""
        steps = {
            self.make: 8,
            self.pass_on: 12,
            self.arrive: 8,
            self.settle: 8,
            self.read: 8,
            self.drop: 10,
            self.loop_turns: 6,
            self.time_passes: 1,
            self.cut: 0.3,
            self.die: 0.2,
        }
        weights = list(steps.values())
        for step in self.rng.choices(list(steps), weights, k=num_steps):
            step()
            for who, process in enumerate(self.processes):
                for held in process.held:
                    assert held.is_right(), (step, who, held)

    def who(self) -> Process:
        return self.rng.choice(self.processes)

    def pair(self) -> tuple[int, int]:
        # With the other host there is less to see.
        one, other = self.rng.sample(range(len(HOSTS) - (self.rng.random() < 0.8)), 2)
        return one, other

    def one_held(self, process: Process) -> Held | None:
        return self.rng.choice(process.held) if process.held else None

    def make(self) -> None:
        """Send something of one's own."""
        one, other = self.pair()
        self.number = self.number % 250 + 1
        data = memoryview(bytes([self.number]) * (self.rng.randint(1, 3) * PAGE))
        pickled = pickle.dumps(pickle.PickleBuffer(bytearray(1)), 5, buffer_callback=lambda _: None)
        block = self.processes[one].arena.keep(data)
        flags = self.rng.choice((0, WRITABLE))
        self.send(one, other, Parcel(pickled, [block or data], [flags]), self.number)

    def pass_on(self) -> None:
        """Send something that came, perhaps more than once: it was turned away."""
        one, other = self.pair()
        process = self.processes[one]
        # Whether what was written to goes on as it was, or as it is now, is not promised.
        may_go = [held for held in process.held if not held.is_written]
        if not may_go:
            return
        held = self.rng.choice([held for held in may_go if held.arrived] or may_go)
        with self.acting(process):
            _, body = packing.pack_value(values.Unopened(held.body, ""))
        lent = process.ends[other].lending.books.lent
        for _ in range(self.rng.randint(1, 2)):
            self.send(one, other, body, held.number)
            self.seen["lent on"] += any(isinstance(block, Loan) for block, _ in lent.values())

    def arrive(self) -> None:
        """Some of what was sent over one connection arrives."""
        one, other = self.pair()
        end = self.processes[one].ends[other]
        for _ in range(min(self.rng.randint(1, 6), len(end.inbox))):
            self.deliver(end)

    def settle(self) -> None:
        """Everything arrives everywhere."""
        is_busy = True
        while is_busy:
            is_busy = False
            for process in self.processes:
                for end in process.ends.values():
                    while end.inbox:
                        self.deliver(end)
                        is_busy = True
                is_busy |= self.turn(process)

    def read(self) -> None:
        """Open something, and perhaps write to it."""
        held = self.one_held(self.who())
        if held is None:
            return
        if held.view is None:
            held.view = memoryview(values.loads(held.body))
        if not held.view.readonly:
            held.view[:] = b"\xff" * len(held.view)
            held.is_written = True
            self.seen["written"] += 1

    def drop(self) -> None:
        """Hold something no more."""
        process = self.who()
        if process.held:
            del process.held[self.rng.randrange(len(process.held))]

    def loop_turns(self) -> None:
        self.turn(self.who())

    def time_passes(self) -> None:
        """Enough of it for memory to be given back."""
        process = self.who()
        late, process.loop.late = process.loop.late, deque()
        process.loop.soon.extend(late)
        self.turn(process)

    def cut(self) -> None:
        """A connection is lost, and both ends live on; what had arrived may be read first."""
        one, other = self.pair()
        reads = self.rng.random() < 0.5
        for end in (self.processes[one].ends[other], self.processes[other].ends[one]):
            self.lose(end, reads)
        self.connect(one, other)

    def die(self) -> None:
        """A process is killed, and another takes its place."""
        who = self.rng.randrange(len(HOSTS))
        dead = self.processes[who]
        for end in dead.ends.values():
            end.lending._borrowed._send = None
            end.inbox.clear()
        dead.held.clear()
        dead.loop.soon.clear()
        self.processes[who] = Process(dead.host)
        for segment in dead.arena._all():
            segment.let_go()
        reads = self.rng.random() < 0.5
        for other, process in enumerate(self.processes):
            if other != who:
                self.lose(process.ends[who], reads)
                self.connect(who, other)

    def lose(self, end: End, reads: bool) -> None:
        while end.inbox and reads:
            self.deliver(end)
        lent = end.lending.books.lent.values()
        self.seen["forfeited"] += sum(isinstance(block, Loan) for block, _ in lent)
        with self.acting(end.process):
            end.lending.on_lost()
        end.inbox.clear()

    # -- the end ----------------------------------------------------------------------------------

    def end(self) -> None:
        """Nobody holds anything: all is free again, and no file is kept but those in use."""
        self.settle()
        for process in self.processes:
            process.held.clear()
        self.settle()
        current = set()
        for process in self.processes:
            assert all(not end.lending.books.lent for end in process.ends.values())
            assert not list(process.arena._left)
            segment = process.arena._segment
            if segment is not None:
                segment.collect()
                assert not segment.is_used
                current.add(segment.token)
        mapped = {
            segment._offer.token
            for process in self.processes
            for end in process.ends.values()
            for segment in end.lending._borrowed._segments.values()
        }
        assert mapped <= current


@pytest.fixture(autouse=True)
def no_files_for_other_tests() -> Iterator[None]:
    """Worlds are circles, and have memory mapped."""
    yield
    gc.collect()


def walked(seed: int) -> Counter[str]:
    with pytest.MonkeyPatch.context() as patch:
        world = World(random.Random(seed), patch)
        world.walk(200)
        world.end()
    return world.seen


@given(st.integers(0, 2**32))
@settings(max_examples=50)
def test_everybody_sees_what_was_sent_and_all_is_let_go_of(seed: int) -> None:
    walked(seed)


def test_the_walks_come_by_what_they_look_for() -> None:
    seen = sum((walked(seed) for seed in range(10)), Counter[str]())
    assert seen["lent on"] >= 50
    assert seen["written"] >= 5
    assert seen["forfeited"] >= 3
