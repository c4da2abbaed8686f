"""What was written to a connection whose other side had closed was never begun there."""

from __future__ import annotations

import asyncio
import socket
import threading
from pathlib import Path

import pytest

from remora.errors import ConnectionLostError
from remora.transport.channel import connect
from remora.wire.codec import pack
from remora.wire.framing import RawFrame, encode
from remora.wire.messages import WIRE_VERSION, FrameKind, Hello


class Sink:
    def __init__(self) -> None:
        self.never_started: bool | None = None

    def on_frame(self, frame: RawFrame) -> None:
        raise AssertionError(frame)

    def on_lost(self, error: ConnectionLostError, never_started: bool) -> None:
        self.never_started = never_started


class Peer:
    """Greets, and leaves when it is told to, in a thread: the loop of the test is blocked."""

    def __init__(self, path: str) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen()
        self._leave = threading.Event()
        self.left = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        sock, _ = self._listener.accept()
        sock.recv(4096)
        sock.sendall(encode(FrameKind.HELLO, 0, pack(Hello(WIRE_VERSION))))
        self._leave.wait(10)
        sock.close()
        self._listener.close()
        self.left.set()

    def leave(self) -> None:
        self._leave.set()
        assert self.left.wait(10)
        self._thread.join()


@pytest.fixture
def peer(remora_home: Path) -> Peer:
    return Peer(str(remora_home / "peer.sock"))


async def test_a_lone_request_to_a_peer_that_has_left_is_refused(
    peer: Peer, remora_home: Path
) -> None:
    channel = await connect(f"unix:{remora_home / 'peer.sock'}", name="test")
    await channel.wait_greeted()
    peer.leave()  # this loop does not turn meanwhile, so the channel cannot know
    with pytest.raises(ConnectionLostError, match="nothing was sent"):
        channel.request(Sink(), b"meta")


async def test_requests_of_one_turn_to_a_peer_that_has_left_were_never_started(
    peer: Peer, remora_home: Path
) -> None:
    channel = await connect(f"unix:{remora_home / 'peer.sock'}", name="test")
    await channel.wait_greeted()
    before, *together = sinks = [Sink() for _ in range(4)]
    channel.request(before, b"meta")  # reaches the peer's socket
    peer.leave()
    for sink in together:
        channel.request(sink, b"meta")
    while any(sink.never_started is None for sink in sinks):
        await asyncio.sleep(0.001)
    assert [sink.never_started for sink in sinks] == [False, True, True, True]


async def test_what_was_sent_before_is_not_taken_for_unsent(peer: Peer, remora_home: Path) -> None:
    channel = await connect(f"unix:{remora_home / 'peer.sock'}", name="test")
    await channel.wait_greeted()
    sinks = [Sink() for _ in range(3)]
    numbers = [channel.request(sink, b"meta") for sink in sinks]
    await asyncio.sleep(0)  # the end of the turn: all of them are in the peer's socket
    peer.leave()
    # Something that belongs to a request that has begun is the first that cannot be written.
    channel.send(FrameKind.BODY, numbers[-1], b"", b"more")
    while any(sink.never_started is None for sink in sinks):
        await asyncio.sleep(0.001)
    assert [sink.never_started for sink in sinks] == [False, False, False]
