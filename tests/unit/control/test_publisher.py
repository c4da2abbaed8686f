from __future__ import annotations

import asyncio

from remora.control.publisher import Publisher
from remora.core.snapshot import AppRoute, Snapshot, patch
from remora.wire.control import Ack, Subscription


def snapshot(version: int) -> Snapshot:
    return Snapshot(version, {"a": AppRoute("a", f"/{version}", "d")})


async def test_a_subscriber_gets_the_whole_and_then_differences() -> None:
    publisher = Publisher(lambda _version: None)
    publisher.publish(snapshot(1))
    stream = publisher.subscribe(Subscription("r", 1))
    first = await anext(stream)
    assert first.reset
    held = patch(Snapshot(), first)
    publisher.publish(snapshot(2))
    publisher.publish(snapshot(3))
    second = await anext(stream)
    assert not second.reset
    assert patch(held, second) == snapshot(3)
    await stream.aclose()


async def test_nothing_comes_before_the_first_snapshot() -> None:
    publisher = Publisher(lambda _version: None)
    stream = publisher.subscribe(Subscription("r", 1))
    waiting = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    assert not waiting.done()
    publisher.publish(snapshot(4))
    assert (await waiting).version == 4
    await stream.aclose()


async def test_a_version_is_acknowledged_when_everybody_has_it() -> None:
    told: list[int] = []
    publisher = Publisher(told.append)
    publisher.publish(snapshot(1))
    assert told == [1]
    one, two = (publisher.subscribe(Subscription(name, 1)) for name in ("one", "two"))
    await anext(one)
    await anext(two)
    publisher.publish(snapshot(2))
    publisher.ack(Ack("one", 2))
    assert told == [1]
    publisher.ack(Ack("nobody", 2))
    assert told == [1]
    publisher.ack(Ack("two", 2))
    assert told == [1, 2]
    publisher.publish(snapshot(3))
    publisher.ack(Ack("one", 3))
    # Who is gone is waited for no longer.
    await two.aclose()
    assert told == [1, 2, 3]
    await one.aclose()


async def test_without_subscribers_everybody_has_it() -> None:
    told: list[int] = []
    publisher = Publisher(told.append)
    publisher.publish(snapshot(1))
    publisher.publish(snapshot(1))
    publisher.publish(snapshot(2))
    assert told == [1, 2]
