"""Frames that make no sense end their own connection or request, and touch nothing else."""

from __future__ import annotations

import asyncio
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.integration.rig import call, open_rig, until

from remora.wire.codec import pack
from remora.wire.framing import encode
from remora.wire.messages import WIRE_VERSION, CallKind, Envelope, FrameKind, Hello
from remora.wire.parcel import Entry, encode_table

#: What is not junk at all: a method that a replica obeys, and calls of the user's code.
_KINDS = [kind for kind in CallKind if kind is not CallKind.CONTROL]
envelopes = st.builds(
    Envelope,
    st.text(max_size=4),
    st.just("default"),
    st.just("App"),
    st.sampled_from(["__call__", "missing", "", "__init__"]),
    st.sampled_from(_KINDS),
    st.none() | st.floats(0, 2),
    body_follows=st.booleans(),
    credit_bytes=st.integers(-5, 2**40),
).map(pack)
entries = st.builds(
    Entry,
    st.integers(0, 40) | st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2),
    st.integers(0, 255),
)
# No pickles: they would run.
no_pickles = st.binary(max_size=40).map(lambda body: b"\xff" + body)
tables = st.builds(
    lambda found, rest: encode_table(found) + rest, st.lists(entries, min_size=1), no_pickles
)
frames = st.tuples(
    st.sampled_from([int(kind) for kind in FrameKind if kind is not FrameKind.HELLO]),
    st.integers(0, 3),
    envelopes | st.binary(max_size=40) | st.integers(-(2**40), 2**40).map(pack),
    no_pickles | tables,
    st.integers(0, 255),
)


class Echo:
    def __call__(self, value: int = 0) -> int:
        return value


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(sent=st.lists(frames, max_size=12))
def test_junk_frames_disturb_nobody_else(
    sent: list[tuple[int, int, bytes, bytes, int]], remora_home: Path
) -> None:
    async def scenario() -> None:
        async with open_rig(remora_home) as rig:
            node, router = await rig.pair(Echo)
            reader, writer = await asyncio.open_unix_connection(node.path)
            writer.write(encode(FrameKind.HELLO, 0, pack(Hello(WIRE_VERSION, "junk"))))
            for kind, number, meta, body, flags in sent:
                writer.write(encode(kind, number, meta, body, flags))
            writer.write_eof()
            assert await call(router, "__call__", 1) == 1
            await asyncio.wait_for(reader.read(), 5)
            assert await call(router, "__call__", 2) == 2
            writer.close()
            await until(lambda: node.replica.ongoing == 0)

    asyncio.run(scenario())
