"""The arena: blocks live as long as somebody holds them, places are used again, memory goes back."""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from remora.transport import arena as module
from remora.transport.arena import TIDY_S, Arena, Segment

PAGE = mmap.PAGESIZE
LIMIT = 64 * PAGE


def kept(arena: Arena, data: bytes | bytearray) -> Any:
    block = arena.keep(memoryview(data))
    assert block is not None
    return block


def resident(segment: Segment) -> int:
    """Bytes of the file that have memory."""
    return os.fstat(segment.fd).st_blocks * 512


class FakeLoop:
    """Keeps the one timer that an arena sets."""

    def __init__(self) -> None:
        self.delay: float | None = None
        self.callback: Callable[[], object] | None = None

    def call_later(self, delay: float, callback: Callable[..., object], *args: object) -> object:
        assert self.callback is None, "one timer is enough"
        self.delay, self.callback = delay, lambda: callback(*args)
        return object()

    def is_closed(self) -> bool:
        return False

    def fire(self) -> None:
        callback, self.callback = self.callback, None
        assert callback is not None
        callback()


def test_a_block_holds_a_copy() -> None:
    source = bytearray(b"x" * 5000)
    block = kept(Arena(LIMIT), source)
    source[:] = b"y" * 5000
    assert block.view() == b"x" * 5000
    assert block.view().readonly
    assert len(block) == 5000


def test_a_place_is_used_again_when_the_last_reference_is_gone() -> None:
    arena = Arena(LIMIT)
    first = kept(arena, b"1" * PAGE)
    place, other = first.offset, first
    del first
    second = kept(arena, b"2" * PAGE)
    assert second.offset != place
    del other
    assert kept(arena, b"3" * PAGE).offset == place


def test_a_view_keeps_its_block() -> None:
    arena = Arena(LIMIT)
    part = kept(arena, b"1" * PAGE).view()[10:20]
    others = [kept(arena, b"2" * PAGE) for _ in range(5)]
    assert part == b"1" * 10
    assert len({block.offset for block in others}) == 5


def test_a_full_arena_says_no_and_then_yes_again() -> None:
    arena = Arena(LIMIT)
    blocks = []
    while (block := arena.keep(memoryview(b"x" * PAGE))) is not None:
        blocks.append(block)
    assert len(blocks) == LIMIT // PAGE - 1  # the first page is the token's
    assert arena.keep(memoryview(bytes(LIMIT))) is None
    blocks.clear()
    del block
    assert arena.keep(memoryview(bytes(LIMIT - PAGE))) is not None


def test_without_memory_files_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object) -> int:
        raise OSError("not permitted")

    monkeypatch.setattr(os, "memfd_create", refuse)
    arena = Arena(LIMIT)
    assert arena.keep(memoryview(b"x" * PAGE)) is None
    monkeypatch.undo()
    # What was refused once is not asked for with every message.
    assert arena.keep(memoryview(b"x" * PAGE)) is None


def test_memory_that_cannot_be_had_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    arena = Arena(LIMIT)
    kept(arena, b"x")

    def refuse(*_args: object) -> int:
        raise OSError("no memory")

    monkeypatch.setattr(os, "pwrite", refuse)
    assert arena.keep(memoryview(b"x" * 3 * PAGE)) is None
    monkeypatch.undo()
    assert kept(arena, b"y" * 3 * PAGE).view() == b"y" * 3 * PAGE


def test_what_was_lent_to_the_lost_is_never_written_to_again() -> None:
    arena = Arena(LIMIT)
    block = kept(arena, b"1" * PAGE)
    segment, view = block.segment, block.view()
    block.forfeit()
    arena.leave(segment)
    del block
    after = [kept(arena, b"2" * PAGE) for _ in range(10)]
    assert view == b"1" * PAGE
    assert all(one.segment is not segment for one in after)


class Reader:
    """Stands for a connection that something is lent over."""

    def __init__(self) -> None:
        self.gone: list[int] = []

    def withdraw(self, number: int) -> None:
        self.gone.append(number)


def test_who_knows_of_a_segment_hears_of_its_end_and_nobody_is_told_of_it_after_that() -> None:
    arena, early, late = Arena(LIMIT), Reader(), Reader()
    block = kept(arena, b"1")
    assert arena.offer(block.segment, early) is not None
    arena.leave(block.segment)
    assert early.gone == [block.segment.number]
    assert arena.offer(block.segment, late) is None
    assert late.gone == []


def test_a_segment_is_closed_with_its_last_block() -> None:
    arena = Arena(LIMIT)
    block = kept(arena, b"1")
    fd = block.segment.fd
    arena.leave(block.segment)
    assert "memfd:remora" in str(Path(f"/proc/self/fd/{fd}").readlink())
    del block
    with pytest.raises(FileNotFoundError):
        Path(f"/proc/self/fd/{fd}").readlink()


def test_memory_goes_back_when_nothing_was_sent_for_a_while() -> None:
    arena, loop = Arena(LIMIT), FakeLoop()
    block = kept(arena, b"1" * 20 * PAGE)
    segment = block.segment
    arena.tidy_later(loop)  # type: ignore[arg-type]
    arena.tidy_later(loop)  # type: ignore[arg-type]
    assert loop.delay == TIDY_S
    del block
    loop.fire()  # it was used since the last time: kept, in case it is used again
    assert resident(segment) == 21 * PAGE
    loop.fire()
    assert resident(segment) == PAGE
    assert loop.callback is None
    assert kept(arena, b"2" * 3 * PAGE).view() == b"2" * 3 * PAGE


def test_only_what_is_not_used_any_more_goes_back() -> None:
    arena, loop = Arena(LIMIT), FakeLoop()
    first, middle, last = (kept(arena, b"%d" % n * 10 * PAGE) for n in range(3))
    segment = first.segment
    del first, last
    arena.tidy_later(loop)  # type: ignore[arg-type]
    loop.fire()
    loop.fire()
    assert resident(segment) == 11 * PAGE
    assert middle.view() == b"1" * 10 * PAGE


def test_a_busy_arena_keeps_what_it_uses_and_no_more() -> None:
    arena, loop = Arena(LIMIT), FakeLoop()
    segment = kept(arena, b"1" * 30 * PAGE).segment
    arena.tidy_later(loop)  # type: ignore[arg-type]
    loop.fire()
    kept(arena, b"2" * 3 * PAGE)
    loop.fire()
    assert resident(segment) == 4 * PAGE
    assert loop.callback is not None


def test_much_memory_goes_back_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TIDY_STEP_BYTES", 4 * PAGE)
    arena, loop = Arena(LIMIT), FakeLoop()
    segment = kept(arena, b"1" * 10 * PAGE).segment
    arena.tidy_later(loop)  # type: ignore[arg-type]
    loop.fire()
    sizes = []
    while loop.callback is not None:
        loop.fire()
        sizes.append(resident(segment) // PAGE)
    assert sizes == [7, 3, 1]


def test_threads_share_an_arena() -> None:
    arena = Arena(1024 * PAGE)
    wrong: list[object] = []

    def work(letter: bytes) -> None:
        for number in range(200):
            data = letter * (PAGE + number)
            block = arena.keep(memoryview(data))
            if block is None or block.view() != data:
                wrong.append(block)

    threads = [threading.Thread(target=work, args=(b"%d" % n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_forked_child_begins_anew_and_leaves_the_parents_blocks_alone() -> None:
    block = kept(module.arena(), b"1" * PAGE)
    segment = block.segment
    pid = os.fork()
    if not pid:
        mine = module.arena().keep(memoryview(b"2" * PAGE))
        is_apart = mine is not None and mine.segment is not segment and segment.fd == -1
        os._exit(0 if is_apart else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert block.view() == b"1" * PAGE
