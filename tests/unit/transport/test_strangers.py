"""Peers without a greeting: how many there may be, and how often the log tells of them."""

from __future__ import annotations

import asyncio
import logging

import pytest

from remora.transport import strangers
from remora.transport.strangers import MOST_STRANGERS, TELL_AGAIN_S, Told, Waiting


class Peer:
    """A connection that has not greeted."""

    def __init__(self, waiting: Waiting) -> None:
        self._waiting = waiting
        self.reason = ""

    def refuse(self, reason: str) -> None:
        self.reason = reason
        self._waiting.leave(self)


def test_the_same_is_told_once_and_then_with_a_number() -> None:
    told = Told()
    assert told.count("a", "no token", 5.0) == 0
    assert [told.count("a", "no token", 6.0 + n) for n in range(3)] == [None] * 3
    assert told.count("b", "no token", 7.0) == 0
    assert told.count("a", "HTTP", 7.0) == 0
    assert told.count("a", "no token", 5.0 + TELL_AGAIN_S) == 3
    assert told.count("a", "no token", 6.0 + TELL_AGAIN_S) is None


def test_what_was_told_of_many_hosts_takes_no_more_room() -> None:
    told = Told()
    for number in range(5000):
        assert told.count(f"host {number}", "no token", 1.0) == 0
    assert len(told._told) <= 256


async def test_of_too_many_the_one_that_came_first_goes() -> None:
    waiting = Waiting()
    peers = [Peer(waiting) for _ in range(MOST_STRANGERS + 2)]
    waiting.enter(peers[0])
    waiting.enter(peers[1])
    waiting.leave(peers[0])
    for peer in peers[2:]:
        waiting.enter(peer)
    assert [peer.reason for peer in peers if peer.reason] == [
        f"no greeting: {MOST_STRANGERS} other connections have sent none either"
    ]
    assert peers[1].reason
    for peer in peers:
        waiting.leave(peer)


async def test_time_is_up_for_who_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strangers, "HELLO_TIMEOUT_S", 0.01)
    waiting = Waiting()
    peer = Peer(waiting)
    waiting.enter(peer)
    async with asyncio.timeout(5):
        while not peer.reason:
            await asyncio.sleep(0)
    assert peer.reason == "no greeting: it has sent none within 0.01 s"


async def test_the_log_tells_both_directions_apart(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strangers, "_told", Told())
    for _ in range(2):
        strangers.tell_refused("10.0.0.1", "not a frame: size=1")
        strangers.tell_refused("10.0.0.1", "not a frame: size=2")
        strangers.tell_not_taken("tcp:10.0.0.1:80", "wrong cluster token: …")
        strangers.tell_refused("", "it speaks HTTP: …")
    warnings = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert warnings == [
        "Refused a connection from 10.0.0.1: not a frame: size=1",
        "No connection to tcp:10.0.0.1:80: wrong cluster token: …",
        "Refused a connection from this machine: it speaks HTTP: …",
    ]
