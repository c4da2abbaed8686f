"""What a body may be, beside bytes."""

from __future__ import annotations

from array import array

import pytest

from remora.wire.framing import octets


def test_bytes_are_taken_as_they_are() -> None:
    data = b"x" * 10
    assert octets(data) is data


def test_a_view_counts_bytes_and_not_elements() -> None:
    numbers = array("d", range(10))
    assert len(octets(numbers)) == len(octets(memoryview(numbers))) == 80
    read_only = memoryview(numbers.tobytes()).cast("d")
    assert octets(read_only) == numbers.tobytes()
    assert octets(memoryview(array("d"))) == b""


def test_what_can_still_change_is_copied() -> None:
    data = bytearray(b"before")
    sent = octets(data)
    data[:] = b"after, and longer"
    assert bytes(sent) == b"before"


@pytest.mark.parametrize("data", ("text", ["a", "list"], None, 3))
def test_what_holds_no_bytes_is_refused(data: object) -> None:
    with pytest.raises(TypeError):
        octets(data)
