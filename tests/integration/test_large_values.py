"""Large arguments, answers and items: through shared memory where both ends can, else as bytes."""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
from typing import Any

import numpy as np
import pytest
from tests.integration.rig import Rig, call, stream, until

from remora.calls.pending import FrameOf
from remora.core.request.lent import Lent, Place
from remora.router.call import unopened
from remora.router.router import Router
from remora.transport import arena as arena_module
from remora.transport import borrowing
from remora.transport.arena import Arena
from remora.transport.lending import Lending
from remora.transport.packing import LEND_BYTES
from remora.wire.framing import encode
from remora.wire.messages import FrameKind, SegmentOffer

MIB = 1024 * 1024


class App:
    def __init__(self) -> None:
        self.kept: list[Any] = []
        self.made = 0

    async def echo(self, value: Any) -> Any:
        return value

    async def keep(self, value: Any) -> int:
        self.kept.append(value)
        return len(self.kept)

    async def drop(self) -> None:
        self.kept.clear()

    async def total(self, value: Any) -> int:
        return int(value.sum())

    async def ones(self, size: int) -> Any:
        return np.ones(size, np.uint8)

    async def scribble(self, value: Any) -> int:
        """What code that cares for no read-only flag does."""
        address = value.__array_interface__["data"][0]
        ctypes.memset(address, 255, value.nbytes)
        return int(value.sum())

    async def gen(self, number: int, size: int) -> Any:
        for n in range(number):
            yield np.full(size, n, np.uint8)

    def plain_gen(self, number: int, size: int) -> Any:
        for n in range(number):
            self.made = n + 1
            yield np.full(size, n, np.uint8)

    def plain_total(self, value: Any) -> int:
        return int(value.sum())

    async def facts(self, value: Any) -> Any:
        return type(value).__name__, len(value), bytes(value[:3])


@pytest.fixture(autouse=True)
def own_arena(monkeypatch: pytest.MonkeyPatch) -> Arena:
    """An arena that no other test has used."""
    made = Arena(16 * MIB)
    monkeypatch.setattr(arena_module, "_arena", made)
    return made


def lending_of(router: Router) -> Lending:
    channel = router._open[0].channel
    assert channel is not None
    return channel._lend()


def array(size: int = MIB, value: int = 7) -> Any:
    return np.full(size, value, np.uint8)


async def warm(router: Router) -> Lending:
    """Let both ends agree on shared memory, which the first large value of each asks for."""
    await call(router, "echo", array())
    await call(router, "echo", array())
    found = lending_of(router)
    assert found.books.readable == {1: True}
    return found


async def test_arrays_come_as_they_were_both_ways(rig: Rig) -> None:
    _, router = await rig.pair(App)
    sent: Any = np.arange(300_000, dtype=np.float64).reshape(3, -1)
    for _ in range(3):
        got = await call(router, "echo", sent)
        np.testing.assert_array_equal(got, sent)
        assert got.dtype == sent.dtype


async def test_the_first_large_value_goes_inline_and_the_next_ones_are_lent(rig: Rig) -> None:
    _, router = await rig.pair(App)
    assert await call(router, "total", array()) == 7 * MIB
    found = lending_of(router)
    await until(lambda: found.books.readable == {1: True})
    held = call(router, "total", array())
    assert len(found.books.lent) == 1
    assert await held == 7 * MIB


@pytest.mark.parametrize(("size", "is_lent"), [(128 * 1024 - 1, False), (128 * 1024, True)])
async def test_from_128_kib_on_arguments_answers_and_items_are_lent(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, size: int, is_lent: bool
) -> None:
    _, router = await rig.pair(App)
    await warm(router)
    num_lent = 0
    lend = Lent.lend

    def counted(books: Any, place: Place, block: Any) -> None:
        nonlocal num_lent
        num_lent += 1
        lend(books, place, block)

    monkeypatch.setattr(Lent, "lend", counted)
    seen = []
    assert await call(router, "total", array(size)) == 7 * size
    seen.append(num_lent)
    assert len(await call(router, "ones", size)) == size
    seen.append(num_lent)
    assert [len(item) async for item in stream(router, "gen", 2, size)] == [size] * 2
    seen.append(num_lent)
    assert seen == ([1, 2, 4] if is_lent else [0, 0, 0])


async def test_what_comes_is_read_only(rig: Rig) -> None:
    node, router = await rig.pair(App)
    await warm(router)
    got = await call(router, "echo", array())
    await call(router, "keep", array())
    for one in (got, node.target.kept[0]):
        with pytest.raises(ValueError, match="read-only"):
            one[0] = 1
        with pytest.raises(ValueError, match="WRITEABLE"):
            one.flags.writeable = True
        copy = one.copy()
        copy[0] = 1
    node.target.kept.clear()


@pytest.mark.parametrize(
    ("sent", "writable"),
    [
        (np.ones(3), False),
        (np.ones((300, 300)), False),
        (np.ones((300, 300)).T, False),
        (np.array(["a", "b"]), False),
        (np.zeros(5, dtype=[("a", "i4")]), False),
        (np.ones((300, 300))[::2], True),
        (np.ones((10, 10))[:, ::2], True),
        (np.array([1, "x", None], dtype=object), True),
        (np.ma.ones(5), True),
    ],
    ids=("small", "large", "fortran", "text", "records", "rows", "columns", "objects", "masked"),
)
async def test_what_is_a_view_is_read_only_and_what_was_copied_is_not(
    rig: Rig, sent: Any, writable: bool
) -> None:
    node, router = await rig.pair(App)
    await call(router, "keep", sent)
    got = node.target.kept.pop()
    assert got.flags.writeable is writable
    np.testing.assert_array_equal(got, sent)


async def test_the_caller_may_change_its_array_at_once(rig: Rig) -> None:
    _, router = await rig.pair(App)
    await warm(router)
    mine = array()
    pending = call(router, "total", mine)
    mine[:] = 0
    assert await pending == 7 * MIB


async def test_blocks_are_used_again(rig: Rig, own_arena: Arena) -> None:
    _, router = await rig.pair(App)
    found = await warm(router)
    for _ in range(20):
        await call(router, "total", array())
        await until(lambda: not found.books.lent)
    segment = own_arena._segment
    assert segment is not None
    assert segment.resident_end < 6 * MIB


async def test_views_outlive_their_request_while_others_go_through(rig: Rig) -> None:
    node, router = await rig.pair(App)
    found = await warm(router)
    for number in range(3):
        await call(router, "keep", array(value=number))
    answers = [await call(router, "echo", array(value=10 + n)) for n in range(3)]
    for number in range(300):
        assert await call(router, "total", array(LEND_BYTES, number % 200)) == (
            number % 200 * LEND_BYTES
        )
    for number, kept in enumerate(node.target.kept):
        assert (kept == number).all()
    for number, answer in enumerate(answers):
        assert (answer == 10 + number).all()
    await call(router, "drop")
    del kept, answer, answers
    gc.collect()
    await until(lambda: not found.books.lent)


async def test_a_part_of_a_view_keeps_the_whole(rig: Rig) -> None:
    _, router = await rig.pair(App)
    await warm(router)
    part = (await call(router, "echo", array(value=9)))[100:200]
    for _ in range(10):
        await call(router, "echo", array(value=1))
    assert (part == 9).all()


async def test_what_is_written_against_the_rules_reaches_nobody(rig: Rig) -> None:
    _, router = await rig.pair(App)
    await warm(router)
    for _ in range(4):
        pending = call(router, "scribble", array(value=3))
        assert await pending == 255 * MIB
        # In the same place: what was written there is gone.
        assert await call(router, "total", array(value=3)) == 3 * MIB


async def test_an_answer_that_nobody_takes_is_released(rig: Rig) -> None:
    node, router = await rig.pair(App)
    await warm(router)
    connection = next(iter(node.replica._connections))
    pending = call(router, "ones", MIB)
    await until(lambda: connection._lend().books.lent)
    pending.cancel()
    del pending
    await until(lambda: not connection._lend().books.lent)


async def test_requests_that_are_turned_away_take_their_values_elsewhere(rig: Rig) -> None:
    node, router = await rig.pair(App, max_ongoing=1)
    found = await warm(router)
    calls = [call(router, "total", array(value=n)) for n in range(10)]
    assert [await one for one in calls] == [n * MIB for n in range(10)]
    assert node.replica.ongoing == 0
    await until(lambda: not found.books.lent)


async def test_a_full_arena_is_no_error(rig: Rig) -> None:
    node, router = await rig.pair(App)
    await warm(router)
    for number in range(20):  # more than the arena holds
        await call(router, "keep", array(value=number))
    for number, kept in enumerate(node.target.kept):
        assert (kept == number).all()
    assert await call(router, "total", array(20 * MIB, 1)) == 20 * MIB
    del kept
    await call(router, "drop")


async def test_who_cannot_read_our_memory_gets_bytes(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(borrowing, "map_segment", lambda _offer: None)
    _, router = await rig.pair(App)
    for number in range(5):
        got = await call(router, "echo", array(value=number))
        assert (got == number).all()
    found = lending_of(router)
    assert found.books.readable == {1: False}
    assert found.books.lent == {}


@pytest.mark.parametrize("method", ("gen", "plain_gen"))
async def test_streams_of_arrays(rig: Rig, method: str) -> None:
    _, router = await rig.pair(App)
    kept = [item async for item in stream(router, method, 30, 300_000)]
    assert [(int(item[0]), int(item[-1])) for item in kept] == [(n, n) for n in range(30)]
    count = 0
    async for item in stream(router, method, 30, 300_000):
        assert (item == count).all()
        count += 1
    assert count == 30


async def test_a_slow_reader_of_arrays_holds_the_generator_back(rig: Rig) -> None:
    node, router = await rig.pair(App)
    await warm(router)
    connection = next(iter(node.replica._connections))
    items = stream(router, "gen", 50, MIB)
    first = await anext(items)
    assert len(connection._lend().books.lent) <= 3
    assert (first == 0).all()
    items.cancel()


async def test_a_plain_generator_gets_only_a_few_arrays_ahead(rig: Rig) -> None:
    node, router = await rig.pair(App)
    items = stream(router, "plain_gen", 200, MIB)
    for _ in range(20):
        await anext(items)
    assert node.target.made < 20 + 10
    items.cancel()


async def test_what_dies_in_another_thread_is_released(rig: Rig) -> None:
    _, router = await rig.pair(App)
    found = await warm(router)
    for number in range(30):
        assert await call(router, "plain_total", array(value=number)) == number * MIB
    await until(lambda: not found.books.lent)


async def test_memory_goes_back_while_the_connection_stays(
    rig: Rig, own_arena: Arena, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arena_module, "TIDY_S", 0.02)
    _, router = await rig.pair(App)
    await warm(router)
    answer = await call(router, "echo", array(value=3))
    segment = own_arena._segment
    assert segment is not None
    await until(lambda: os.fstat(segment.fd).st_blocks * 512 <= MIB + 2 * mmap.PAGESIZE)
    assert (answer == 3).all()
    # And what is used anew is new, also for a reader that had it mapped.
    for number in range(5):
        assert await call(router, "total", array(value=number)) == number * MIB
    assert own_arena._segment is segment


@pytest.mark.parametrize("kind", (bytes, bytearray))
async def test_large_bytes_come_as_what_they_were(rig: Rig, kind: Any) -> None:
    _, router = await rig.pair(App)
    value = kind(b"abc" * MIB)
    for _ in range(3):
        assert await call(router, "facts", value) == (kind.__name__, 3 * MIB, b"abc")
        got = await call(router, "echo", value)
        assert type(got) is kind
        assert got == value


async def test_many_buffers_of_all_sizes(rig: Rig) -> None:
    _, router = await rig.pair(App)
    sent = [array(size, n) for n, size in enumerate((0, 1, 1000, LEND_BYTES, LEND_BYTES - 1, MIB))]
    for _ in range(3):
        got = await call(router, "echo", {"list": sent, "text": "x" * 100_000})
        for a, b in zip(got["list"], sent, strict=True):
            np.testing.assert_array_equal(a, b)


async def test_a_lost_connection_leaves_living_readers_their_memory(rig: Rig) -> None:
    node, router = await rig.pair(App)
    await warm(router)
    answer = await call(router, "echo", array(value=5))
    await call(router, "keep", array(value=6))
    node.die()
    await until(lambda: not router._open)
    other, second = await rig.pair(App)
    for _ in range(10):
        await call(second, "echo", array(value=1))
    assert (answer == 5).all()
    assert (node.target.kept[0] == 6).all()
    assert other.target is not node.target
    node.target.kept.clear()


async def test_memory_is_let_go_of_with_the_last_connection(rig: Rig, own_arena: Arena) -> None:
    node, router = await rig.pair(App)
    await warm(router)
    node.die()
    await until(lambda: not router._open)
    gc.collect()
    await until(lambda: own_arena._segment is None and not list(own_arena._left))


async def test_an_answer_goes_on_unopened(rig: Rig) -> None:
    _, router = await rig.pair(App)
    await warm(router)
    pending = call(router, "echo", array(value=4))
    await until(pending.done)
    answer = unopened(await FrameOf(pending))
    assert await call(router, "total", answer) == 4 * MIB
    got = await call(router, "echo", [answer, answer])
    assert (got[1] == 4).all()


@pytest.mark.parametrize(
    "frame",
    (
        encode(FrameKind.RELEASE, 0, b"", bytes(12)),
        encode(FrameKind.RELEASE, 0, b"", b"abc"),
        encode(FrameKind.FORFEIT, 0, b"", bytes(12)),
        encode(FrameKind.FORFEIT, 0, b"", b"abc"),
        encode(FrameKind.SEGMENT, 0, b"", b"junk"),
        encode(FrameKind.REQUEST, 1, b"", b"\0junk", flags=2),
    ),
)
async def test_who_talks_nonsense_about_memory_is_cut_off(rig: Rig, frame: bytes) -> None:
    node, router = await rig.pair(App)
    connection = next(iter(node.replica._connections))
    before = router._open[0].channel
    connection.data_received(frame)
    await until(lambda: router._open and router._open[0].channel is not before)
    assert await call(router, "facts", b"abc") == ("bytes", 3, b"abc")


def test_only_the_very_file_that_is_meant_is_mapped(own_arena: Arena) -> None:
    block = own_arena.keep(memoryview(b"x" * 5000))
    assert block is not None
    s = block.segment
    right = (os.getpid(), s.fd, s.size, s.token)
    found = borrowing.map_segment(SegmentOffer(1, *right))
    assert isinstance(found, mmap.mmap)
    assert found[block.offset : block.offset + 3] == b"xxx"
    for wrong in (
        (2**22 + 5, *right[1:]),
        (right[0], 10_000, *right[2:]),
        (*right[:2], s.size + mmap.PAGESIZE, s.token),
        (*right[:3], bytes(16)),
        (right[0], 0, *right[2:]),
    ):
        assert borrowing.map_segment(SegmentOffer(1, *wrong)) is None


class TestTensors:
    """PyTorch's tensors, which it pickles slowly and in the pickle."""

    async def test_all_kinds_come_as_they_were(self, rig: Rig) -> None:
        torch = pytest.importorskip("torch")
        _, router = await rig.pair(App)
        base = torch.arange(120_000, dtype=torch.float32)
        for sent in (
            base,
            base.reshape(300, 400).t(),
            base.reshape(300, 400)[::2, 5:9],
            base.reshape(3, 200, 200).permute(2, 0, 1),
            base.to(torch.bfloat16),
            base > 5,
            base.to(torch.complex64),
            base.to(torch.complex64).conj(),
            base.to_sparse(),
            base.clone().requires_grad_(),
            torch.tensor(4.5),
            torch.empty(0, 3),
            torch.nn.Parameter(base.clone()),
        ):
            for _ in range(2):
                got = await call(router, "echo", sent)
                assert type(got) is type(sent)
                assert got.dtype == sent.dtype
                assert got.requires_grad == sent.requires_grad
                assert got.layout == sent.layout
                assert torch.equal(got.to_dense(), sent.to_dense())

    async def test_they_are_lent_and_can_be_written_to(self, rig: Rig) -> None:
        torch = pytest.importorskip("torch")
        _, router = await rig.pair(App)
        found = await warm(router)
        sent = torch.full((MIB,), 3, dtype=torch.uint8)
        for _ in range(4):
            gc.collect()
            await until(lambda: not found.books.lent)
            pending = call(router, "echo", sent)
            assert len(found.books.lent) == 1
            got = await pending
            got += 1
            assert int(got[0]) == 4
            assert int(sent[0]) == 3
            del got, pending
            # The place of what was written to is clean again.
            assert await call(router, "total", array(value=3)) == 3 * MIB
