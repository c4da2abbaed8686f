"""Large answers as arguments: who takes them reads the memory of who made them, not the caller's."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any, cast

import numpy as np
import pytest
from tests.integration.rig import FakeClient, Node, Rig, until

from remora.core.request.lent import Lent, Place
from remora.errors import ReplicaDiedError
from remora.handle import DeploymentHandle, forget_routers
from remora.method import method
from remora.router import process as routing
from remora.router.router import Router
from remora.transport import arena as arena_module
from remora.transport import borrowing
from remora.transport.arena import Arena
from remora.transport.borrowing import Loan
from remora.types import DeploymentID

pytestmark = [pytest.mark.slow]

MIB = 1024 * 1024


class Maker:
    async def make(self, value: int, size: int = MIB) -> Any:
        return np.full(size, value, np.uint8)

    async def tensor(self, value: int) -> Any:
        import torch

        return torch.full((MIB,), value, dtype=torch.uint8)

    async def many(self, number: int) -> AsyncIterator[Any]:
        for value in range(number):
            yield np.full(MIB, value, np.uint8)


class Taker:
    def __init__(self) -> None:
        self.kept: list[Any] = []
        self.gate = asyncio.Event()

    async def value(self, array: Any, *, wait: bool = False) -> int:
        """The one value of an array of one value."""
        if wait:
            await self.gate.wait()
        assert (array == array[0]).all()
        return int(array[0])

    @method(idempotent=True)
    async def value_again(self, array: Any) -> int:
        return await self.value(array, wait=True)

    async def keep(self, *arrays: Any) -> None:
        self.kept.extend(arrays)

    async def add(self, tensor: Any, number: int) -> int:
        tensor += number
        await self.gate.wait()
        assert (tensor == tensor[0]).all()
        return int(tensor[0])

    async def values_of(self, items: Any) -> list[int]:
        return [int(item[0]) async for item in items]


class Trio:
    """Who makes, who takes, and the caller between them; each with connections of its own."""

    def __init__(self, maker: Node, takers: list[Node], routers: tuple[Router, Router]) -> None:
        self.maker = maker
        self.takers = takers
        self.make_router, self.take_router = routers
        self.make: Any = DeploymentHandle("Maker", "default")
        self.take: Any = DeploymentHandle("Taker", "default")

    @property
    def taker(self) -> Node:
        return self.takers[0]

    def books(self, router: Router) -> list[Lent[Any]]:
        channels = [link.channel for link in router._open]
        return [channel._lend().books for channel in channels if channel is not None]

    @property
    def passed_on(self) -> list[Loan]:
        """What the takers have through the caller."""
        lent = [block for books in self.books(self.take_router) for block, _ in books.lent.values()]
        return [block for block in lent if isinstance(block, Loan)]

    @property
    def made(self) -> int:
        """How many blocks of the maker somebody has."""
        return sum(len(c._lend().books.lent) for c in self.maker.replica._connections)

    async def agree(self) -> None:
        """Let each taker say whether it can read the maker's memory."""
        for _ in range(20):
            await asyncio.gather(
                *(self.take.value.remote(self.make.make.remote(1)) for _ in self.takers)
            )
            books = self.books(self.take_router)
            await until(lambda books=books: None not in [*each(books)])  # type: ignore[misc]
            if all(any(number >= 2**31 for number in one.readable) for one in books):
                return
        raise AssertionError("they do not agree")

    async def nothing_left(self) -> None:
        """Wait until all that was made is given back."""
        gc.collect()
        await until(lambda: not self.passed_on and not self.made)


def each(books: list[Lent[Any]]) -> list[bool | None]:
    return [readable for one in books for readable in one.readable.values()]


async def trio(rig: Rig, num_takers: int = 1, max_ongoing: int = 5, *, agree: bool = True) -> Trio:
    maker = await rig.node(Maker, max_ongoing=100)
    takers = [await rig.node(Taker, max_ongoing=max_ongoing) for _ in range(num_takers)]
    forget_routers()
    client = FakeClient(rig)
    routers = await rig.routed(maker), await rig.routed(*takers)
    for name, router in zip(("Maker", "Taker"), routers, strict=True):
        client._routers[DeploymentID(name)] = router
    routing.adopt_client(cast(Any, client))
    made = Trio(maker, takers, routers)
    if agree:
        await made.agree()
    return made


@pytest.fixture(autouse=True)
def own_arena(monkeypatch: pytest.MonkeyPatch) -> Arena:
    """An arena that no other test has used; all processes are one here, and share it."""
    made = Arena(64 * MIB)
    monkeypatch.setattr(arena_module, "_arena", made)
    return made


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts what is copied into an arena, lent by its owner, and lent on."""
    counts: Counter[str] = Counter()
    keep, lend = Arena.keep, Lent.lend

    def kept(arena: Arena, data: memoryview) -> Any:
        counts["copied"] += 1
        return keep(arena, data)

    def lent(books: Lent[Any], place: Place, block: Any) -> None:
        counts["lent on" if isinstance(block, Loan) else "lent"] += 1
        lend(books, place, block)

    monkeypatch.setattr(Arena, "keep", kept)
    monkeypatch.setattr(Lent, "lend", lent)
    return counts


async def test_an_answer_goes_on_without_a_copy(rig: Rig, counted: Counter[str]) -> None:
    three = await trio(rig)
    counted.clear()
    for value in range(10):
        assert await three.take.value.remote(three.make.make.remote(value)) == value
    assert counted == {"copied": 10, "lent": 10, "lent on": 10}
    await three.nothing_left()


async def test_until_the_taker_can_read_it_the_caller_sends_a_copy(
    rig: Rig, counted: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    really = borrowing.map_segment
    monkeypatch.setattr(
        borrowing,
        "map_segment",
        lambda offer: really(offer) if offer.number < 2**31 else None,
    )
    three = await trio(rig)
    await three.take.value.remote(np.ones(MIB, np.uint8))
    books = three.books(three.take_router)
    await until(lambda: True in each(books))
    counted.clear()
    for value in range(10):
        assert await three.take.value.remote(three.make.make.remote(value)) == value
    assert counted == {"copied": 20, "lent": 20}
    await three.nothing_left()


async def test_between_hosts_bytes_go_through_the_caller(
    rig: Rig, counted: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(borrowing, "map_segment", lambda offer: None)
    three = await trio(rig, agree=False)
    for value in range(5):
        assert await three.take.value.remote(three.make.make.remote(value)) == value
    assert counted["lent"] == counted["lent on"] == 0


async def test_a_taker_on_another_host_gets_as_bytes_what_the_caller_reads_in_place(
    rig: Rig, counted: Counter[str]
) -> None:
    three = await trio(rig, agree=False)
    (connection,) = three.taker.replica._connections
    connection._lend()._borrowed.take = lambda offer: False  # type: ignore[method-assign]
    await three.agree()
    counted.clear()
    for value in range(5):
        assert await three.take.value.remote(three.make.make.remote(value)) == value
    assert counted["lent"] == 5, "from the maker to the caller"
    assert counted["lent on"] == 0
    await three.nothing_left()


async def test_the_same_answer_for_two_takers_and_for_the_caller(rig: Rig) -> None:
    three = await trio(rig, num_takers=2, max_ongoing=1)
    for value in range(5):
        answer = three.make.make.remote(value)
        taken = [three.take.value.remote(answer) for _ in range(2)]
        got = await answer
        assert await asyncio.gather(*taken) == [value] * 2
        assert (got == value).all()
        assert not got.flags.writeable
        assert await three.take.value.remote(answer) == value
        del answer, taken
        await three.take.value.remote(three.make.make.remote(100))
        assert (got == value).all()
        del got
    await three.nothing_left()


async def test_many_calls_at_one_taker_share_what_is_only_read(
    rig: Rig, counted: Counter[str]
) -> None:
    three = await trio(rig)
    counted.clear()
    answer = three.make.make.remote(7)
    taken = [three.take.value.remote(answer, wait=True) for _ in range(4)]
    await until(lambda: three.taker.replica.ongoing == 4)
    assert len(three.passed_on) == 1
    three.taker.target.gate.set()
    assert await asyncio.gather(*taken) == [7] * 4
    assert counted == {"copied": 1, "lent": 1, "lent on": 4}
    del answer, taken
    await three.nothing_left()


async def test_who_is_turned_away_takes_its_values_elsewhere(rig: Rig) -> None:
    three = await trio(rig, num_takers=3, max_ongoing=1)
    taken = [three.take.value.remote(three.make.make.remote(n)) for n in range(30)]
    assert await asyncio.gather(*taken) == list(range(30))
    assert [node.replica.ongoing for node in three.takers] == [0, 0, 0]
    del taken
    await three.nothing_left()


async def test_a_call_that_is_given_up_gives_everything_back(rig: Rig) -> None:
    three = await trio(rig)
    pending = three.take.value.remote(three.make.make.remote(3), wait=True)
    await until(lambda: three.passed_on)
    pending.cancel()
    del pending
    await three.nothing_left()


async def test_streamed_arrays_go_on_without_copies(rig: Rig, counted: Counter[str]) -> None:
    three = await trio(rig)
    counted.clear()
    items = three.make.options(stream=True).many.remote(20)
    assert await three.take.values_of.remote(items) == list(range(20))
    assert counted == {"copied": 20, "lent": 20, "lent on": 20}
    del items
    await three.nothing_left()


# -- who is lost ---------------------------------------------------------------------------------


async def test_what_a_lost_taker_may_still_read_is_never_used_again(
    rig: Rig, own_arena: Arena
) -> None:
    three = await trio(rig, num_takers=2, max_ongoing=5)
    await three.take.keep.remote(three.make.make.remote(50))
    (lost,) = [node for node in three.takers if node.target.kept]
    segment = own_arena._segment
    lost.die()
    await until(lambda: len(three.take_router._open) == 1)
    await three.nothing_left()
    assert own_arena._segment is not segment, "the maker has begun another file"
    for value in range(20):
        assert await three.take.value.remote(three.make.make.remote(value)) == value
    assert (lost.target.kept[0] == 50).all()
    lost.target.kept.clear()
    del segment
    gc.collect()
    await until(lambda: not list(own_arena._left))


async def test_a_call_whose_taker_is_lost_goes_to_another_with_the_same_memory(rig: Rig) -> None:
    three = await trio(rig, num_takers=2)
    answer = three.make.make.remote(9)
    pending = three.take.value_again.remote(answer)
    await until(lambda: any(node.replica.ongoing for node in three.takers))
    (lost,) = [node for node in three.takers if node.replica.ongoing]
    (other,) = [node for node in three.takers if node is not lost]
    other.target.gate.set()
    lost.die()
    assert await pending == 9
    assert pending.attempts == 2
    assert (await answer == 9).all()
    del answer, pending
    await three.nothing_left()


async def test_a_call_that_may_not_run_twice_fails_with_its_taker(rig: Rig) -> None:
    three = await trio(rig)
    answer = three.make.make.remote(9)
    pending = three.take.value.remote(answer, wait=True)
    await until(lambda: three.taker.replica.ongoing)
    three.taker.die()
    with pytest.raises(ReplicaDiedError):
        await pending
    assert (await answer == 9).all()
    del answer, pending
    await three.nothing_left()


async def test_what_a_lost_maker_has_made_is_read_to_the_end(rig: Rig) -> None:
    three = await trio(rig)
    answer = three.make.make.remote(11)
    await three.take.keep.remote(answer)
    pending = three.take.value.remote(answer, wait=True)
    await until(lambda: three.taker.replica.ongoing)
    three.maker.die()
    await until(lambda: not three.make_router._open)
    # Nobody has its file, but for what is still used.
    (taker,) = three.taker.replica._connections
    await until(lambda: not taker._lend()._borrowed._segments)
    assert (await answer == 11).all()
    assert await three.take.value.remote(answer) == 11, "as a copy from now on"
    three.taker.target.gate.set()
    assert await pending == 11
    assert (three.taker.target.kept[0] == 11).all()
    three.taker.target.kept.clear()
    del answer, pending
    await until(lambda: not three.passed_on)


async def test_what_came_through_a_lost_caller_is_never_used_again(
    rig: Rig, own_arena: Arena
) -> None:
    three = await trio(rig)
    await three.take.keep.remote(three.make.make.remote(21))
    (array,) = three.taker.target.kept
    three.make_router.disconnect()
    three.take_router.disconnect()
    connections = three.maker.replica._connections, three.taker.replica._connections
    await until(lambda: not any(connections))
    again = await rig.routed(three.maker)
    routing_client = FakeClient(rig)
    routing_client._routers[DeploymentID("Maker")] = again
    forget_routers()
    routing.adopt_client(cast(Any, routing_client))
    make: Any = DeploymentHandle("Maker", "default")
    for value in range(20):
        assert int((await make.make.remote(value))[0]) == value
    assert (array == 21).all()
    three.taker.target.kept.clear()
    del array
    gc.collect()
    await until(lambda: not list(own_arena._left))


# -- what may be written to -----------------------------------------------------------------------


class TestTensors:
    """PyTorch knows no read-only tensors."""

    async def test_each_call_has_its_own(self, rig: Rig) -> None:
        pytest.importorskip("torch")
        three = await trio(rig)
        answer = three.make.tensor.remote(1)
        taken = [three.take.add.remote(answer, n) for n in (1, 2, 3)]
        await until(lambda: three.taker.replica.ongoing == 3)
        mine = await answer
        mine += 10
        three.taker.target.gate.set()
        assert await asyncio.gather(*taken) == [2, 3, 4]
        assert (mine == 11).all()
        del answer, taken, mine
        await three.nothing_left()

    async def test_they_go_on_without_a_copy_and_can_be_written_to(
        self, rig: Rig, counted: Counter[str]
    ) -> None:
        pytest.importorskip("torch")
        three = await trio(rig)
        three.taker.target.gate.set()
        counted.clear()
        for value in range(5):
            assert await three.take.add.remote(three.make.tensor.remote(value), 100) == value + 100
            await three.nothing_left()
        assert counted == {"copied": 5, "lent": 5, "lent on": 5}

    async def test_what_the_caller_has_changed_goes_on_as_it_is(self, rig: Rig) -> None:
        pytest.importorskip("torch")
        three = await trio(rig)
        three.taker.target.gate.set()
        answer = three.make.tensor.remote(1)
        mine = await answer
        mine += 1
        assert await three.take.add.remote(answer, 1) == 3
        assert (mine == 2).all()
        del answer, mine
        await three.nothing_left()
