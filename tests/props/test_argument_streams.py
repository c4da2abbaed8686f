"""Both ends of a stream among the arguments, joined without a socket."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from remora.replica.inbound import Inbound
from remora.router.upload import Upload
from remora.transport.packing import pack_value
from remora.wire.messages import FrameKind
from remora.wire.window import WINDOW_BYTES, cost


class Wire:
    """Carries frames between the two at once, and counts what is under way."""

    def __init__(self, sources: list[Any]) -> None:
        self.under_way = 0
        self.most = 0
        self.largest = 0
        self.upload = Upload(sources, lambda item: pack_value(item, ""), contextvars.copy_context())
        link = SimpleNamespace(channel=SimpleNamespace(send=self._to_callee))
        self.upload.call = cast(Any, SimpleNamespace(link=link, number=1))
        names: list[int | str] = list(range(len(sources)))
        self.inbound = Inbound(cast(Any, SimpleNamespace(write=self._to_caller)), 1, names, "r")
        self.streams = self.inbound.put_into([None] * len(sources), {})[0]

    def _to_callee(self, kind: int, number: int, meta: bytes, body: Any) -> None:
        assert kind == FrameKind.BODY
        self.under_way += cost(len(body))
        self.largest = max(self.largest, cost(len(body)))
        self.most = max(self.most, self.under_way)
        self.inbound.feed(meta, body)

    def _to_caller(self, kind: int, number: int, meta: bytes) -> None:
        self.upload.on_frame((kind, 0, 0, number, meta, b""))


async def items_of(sizes: list[int], state: dict[str, Any]) -> AsyncIterator[bytes]:
    try:
        for size in sizes:
            yield b"x" * size
        if state.get("fails"):
            raise KeyError("at the end")
    finally:
        state["closed"] = True


_sizes = st.lists(st.one_of(st.integers(0, 300), st.integers(50_000, 400_000)), max_size=30)


@given(st.lists(_sizes, min_size=1, max_size=3), st.data())
def test_every_item_arrives_once_and_in_order_whatever_the_reader_does(
    sources: list[list[int]], data: st.DataObject
) -> None:
    async def main() -> None:
        states: list[dict[str, Any]] = [{} for _ in sources]
        wire = Wire([items_of(s, state) for s, state in zip(sources, states, strict=True)])
        got: list[list[int]] = [[] for _ in sources]
        open_ones = set(range(len(sources)))
        while open_ones:
            index = data.draw(st.sampled_from(sorted(open_ones)))
            try:
                item = await asyncio.wait_for(anext(wire.streams[index]), 5)
            except StopAsyncIteration:
                open_ones.discard(index)
            else:
                got[index].append(len(item))
                wire.under_way -= cost(len(item))
        assert got == sources
        assert all(state["closed"] for state in states)
        # Each stream has a window of its own, passes it by one item at most, and has one in the
        # hands of its reader.
        ends = len(sources) * cost(0)
        assert wire.most <= len(sources) * (WINDOW_BYTES + 2 * wire.largest) + ends

    asyncio.run(main())


@given(_sizes, st.integers(0, 31), st.booleans(), st.sampled_from(["callee", "end", "call"]))
def test_however_a_stream_ends_its_source_is_closed(
    sizes: list[int], taken: int, fails: bool, by: str
) -> None:
    async def main() -> None:
        state: dict[str, Any] = {"fails": fails}
        wire = Wire([items_of(sizes, state)])
        stream = wire.streams[0]
        ending: BaseException | None = None
        for _ in range(taken):
            try:
                await asyncio.wait_for(anext(stream), 5)
            except (StopAsyncIteration, KeyError) as error:
                ending = error
                break
        if ending is not None:
            assert isinstance(ending, KeyError) == fails
        if by == "callee":
            await stream.aclose()
        elif by == "end":
            wire.inbound.close()
        wire.upload.close()
        for _ in range(10):
            await asyncio.sleep(0)
        # One that was never begun has nothing to close.
        assert state.get("closed") or taken == 0
        wire.inbound.close()
        assert [x async for x in stream] == []

    asyncio.run(main())
