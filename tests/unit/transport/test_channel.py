"""Numbers of requests, and what a goodbye means for them."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from remora.errors import ConnectionLostError
from remora.transport.channel import Channel
from remora.wire.codec import pack
from remora.wire.framing import FrameDecoder, RawFrame, encode
from remora.wire.messages import WIRE_VERSION, FrameKind, Hello

LAST = 2**32 - 1


class FakeTransport:
    def __init__(self) -> None:
        self.data = b""
        self.closed = False

    def write(self, data: bytes) -> None:
        self.data += data

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default


class Heard:
    def __init__(self) -> None:
        self.frames: list[RawFrame] = []
        self.lost: list[bool] = []

    def on_frame(self, frame: RawFrame) -> None:
        self.frames.append(frame)

    def on_lost(self, error: ConnectionLostError, never_started: bool) -> None:
        self.lost.append(never_started)


class Owner:
    def __init__(self) -> None:
        self.events: list[Any] = []

    def on_notice(self, meta: bytes) -> None:
        self.events.append(meta)

    def on_freed(self, room: int) -> None:
        self.events.append(room)

    def on_bye(self) -> None:
        self.events.append("bye")

    def on_promises(self, promises: bytes) -> None:
        self.events.append(promises)

    def on_lost(self, error: ConnectionLostError) -> None:
        self.events.append("lost")


@pytest.fixture
async def owner() -> Owner:
    return Owner()


@pytest.fixture
async def channel(owner: Owner) -> Channel:
    made = Channel("unix:/peer", "me", owner=owner)
    made.connection_made(cast(asyncio.BaseTransport, FakeTransport()))
    made.data_received(encode(FrameKind.HELLO, 0, pack(Hello(WIRE_VERSION))))
    return made


async def test_a_sink_hears_its_frames_and_nothing_after_the_final_one(channel: Channel) -> None:
    one, other = Heard(), Heard()
    first, second = channel.request(one, b"m"), channel.request(other, b"m")
    channel.data_received(
        encode(FrameKind.ITEM, first, b"", b"1")
        + encode(FrameKind.RESPONSE, second, b"", b"2")
        + encode(FrameKind.END, first)
        + encode(FrameKind.ITEM, first, b"", b"late")
        + encode(FrameKind.ITEM, 999, b"", b"nobody's")
    )
    assert [frame[0] for frame in one.frames] == [FrameKind.ITEM, FrameKind.END]
    assert [frame[5] for frame in other.frames] == [b"2"]
    channel.connection_lost(None)
    assert one.lost == other.lost == []


async def test_a_lost_connection_is_told_once_to_all(channel: Channel, owner: Owner) -> None:
    sinks = [Heard() for _ in range(3)]
    for sink in sinks:
        channel.request(sink, b"")
    channel.connection_lost(OSError("gone"))
    assert [sink.lost for sink in sinks] == [[False]] * 3
    assert owner.events == ["lost"]
    with pytest.raises(ConnectionLostError, match="gone"):
        channel.request(Heard(), b"")


async def test_after_a_goodbye_what_came_later_was_never_begun(
    channel: Channel, owner: Owner
) -> None:
    sinks = [Heard() for _ in range(4)]
    numbers = [channel.request(sink, b"") for sink in sinks]
    channel.data_received(
        encode(FrameKind.FREED, 0, load=7)
        + encode(FrameKind.BYE, 0, numbers[1].to_bytes(8, "little"))
    )
    channel.connection_lost(None)
    assert [sink.lost for sink in sinks] == [[False], [False], [True], [True]]
    assert owner.events == [7, "bye", "lost"]


async def test_numbers_start_over_past_those_under_way(channel: Channel) -> None:
    long_lived = Heard()
    assert channel.request(long_lived, b"") == 1
    channel._last = LAST - 1
    sinks = [Heard() for _ in range(3)]
    numbers = [channel.request(sink, b"") for sink in sinks]
    assert numbers == [LAST, 2, 3]
    channel.data_received(encode(FrameKind.BYE, 0, LAST.to_bytes(8, "little")))
    channel.connection_lost(None)
    assert [sink.lost for sink in sinks] == [[False], [True], [True]]


async def test_waiting_for_the_greeting_ends_with_the_connection() -> None:
    made = Channel("unix:/peer", "me")
    made.connection_made(cast(asyncio.BaseTransport, FakeTransport()))
    waiting = asyncio.create_task(made.wait_greeted())
    await asyncio.sleep(0)
    assert not waiting.done()
    made.connection_lost(None)
    with pytest.raises(ConnectionLostError, match="did not greet"):
        await waiting


async def test_what_is_sent_is_frames(channel: Channel) -> None:
    transport = cast(Any, channel._transport)
    number = channel.request(Heard(), b"meta", b"body", 1)
    channel.send(FrameKind.CANCEL, number)
    channel.request(Heard(), b"", bytes(100_000))
    await asyncio.sleep(0)
    decoder = FrameDecoder()
    decoder.feed(b"")
    frames = decoder.feed(transport.data) + decoder.trust()
    assert [(f[0], f[1], f[3], len(f[5])) for f in frames] == [
        (FrameKind.HELLO, 0, 0, 0),
        (FrameKind.REQUEST, 1, 1, 4),
        (FrameKind.CANCEL, 0, 1, 0),
        (FrameKind.REQUEST, 0, 2, 100_000),
    ]


async def test_one_sink_that_fails_costs_the_others_nothing(
    channel: Channel, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken(Heard):
        def on_frame(self, frame: RawFrame) -> None:
            raise RecursionError("too deep")

    broken, other = Broken(), Heard()
    numbers = [channel.request(sink, b"meta") for sink in (broken, other)]
    channel.data_received(b"".join(encode(FrameKind.RESPONSE, number) for number in numbers))
    assert channel.is_open
    assert len(other.frames) == 1
    assert "too deep" in caplog.text
