"""What is borrowed goes on as it lies, unless somebody here may have written to it."""

from __future__ import annotations

import asyncio
import mmap
import os
import pickle
from collections.abc import Callable

import pytest

from remora.errors import ProtocolError
from remora.transport.arena import Arena, Segment
from remora.transport.borrowing import Borrowed, Loan, loan_of
from remora.wire.messages import SegmentOffer
from remora.wire.parcel import WRITABLE, Entry

PAGE = mmap.PAGESIZE

Borrow = Callable[[int], Loan]


class Reader:
    """Stands for a connection that something is lent over."""

    def withdraw(self, number: int) -> None:
        raise AssertionError(number)


@pytest.fixture
async def borrow() -> Borrow:
    """Borrows two pages of ones, with flags."""
    arena = Arena(64 * PAGE)
    block = arena.keep(memoryview(b"\1" * 2 * PAGE))
    assert block is not None
    offer = arena.offer(block.segment, Reader())
    assert offer is not None
    borrowed = Borrowed(asyncio.get_running_loop(), lambda kind, body: None)
    assert borrowed.take(offer)
    entry = Entry(2 * PAGE, block.offset, offer.number)
    kept = [block, arena]

    def make(flags: int) -> Loan:
        assert kept
        return borrowed.loan(entry._replace(flags=flags))

    return make


async def test_a_view_says_which_loan_it_is_the_whole_of(borrow: Borrow) -> None:
    loan = borrow(0)
    assert loan_of(loan.view()) is loan
    assert loan_of(pickle.PickleBuffer(loan.view_on()).raw()) is loan
    assert loan_of(loan.view()[:PAGE]) is None
    assert loan_of(memoryview(b"abc")) is None
    assert loan_of(memoryview(bytearray(2 * PAGE))) is None


async def test_what_is_read_only_goes_on_before_and_after_it_is_opened(borrow: Borrow) -> None:
    loan = borrow(0)
    assert loan.lend_on()
    assert loan.view().readonly
    assert loan.lend_on()


async def test_what_was_opened_for_writing_does_not_go_on(borrow: Borrow) -> None:
    loan = borrow(WRITABLE)
    assert not loan.view().readonly
    assert not loan.lend_on()


async def test_what_has_gone_on_is_not_opened_for_writing(borrow: Borrow) -> None:
    loan = borrow(WRITABLE)
    assert loan.lend_on()
    assert loan.view().readonly
    assert not loan.view_on().readonly, "who it goes on to may write to it"


@pytest.mark.parametrize(
    "entry",
    (
        Entry(PAGE, PAGE, 7),
        Entry(PAGE, 0, 1),
        Entry(0, PAGE, 1),
        Entry(PAGE, PAGE + 1, 1),
        Entry(PAGE, 64 * PAGE, 1),
        Entry(2**63, PAGE, 1),
    ),
    ids=("segment", "start", "size", "page", "end", "huge"),
)
async def test_what_cannot_be_lent_cannot_be_borrowed(entry: Entry) -> None:
    segment = Segment(1, 64 * PAGE)
    borrowed = Borrowed(asyncio.get_running_loop(), lambda kind, body: None)
    assert borrowed.take(SegmentOffer(1, os.getpid(), segment.fd, segment.size, segment.token))
    with pytest.raises(ProtocolError, match="no block"):
        borrowed.loan(entry)
