"""A coverage-guided fuzzer of everything that turns bytes of a peer into messages.

Run by `test_wire.py`; by hand, for as long as you like:

    python tests/fuzz/wire_target.py -max_total_time=600
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["remora.wire", "remora.errors"]):
    from remora.errors import ProtocolError
    from remora.wire import codec
    from remora.wire.framing import FrameDecoder
    from remora.wire.proof import NONCE_BYTES, ProvingCaller, ProvingListener

#: Whatever reads the meta of a frame.
READERS = [getattr(codec, name) for name in sorted(vars(codec)) if name.startswith("decode_")]


def read(data: bytes) -> None:
    """Read bytes as a peer's; whatever is wrong with them is one of the two known errors."""
    provider = atheris.FuzzedDataProvider(data)
    decoder = FrameDecoder()
    if provider.ConsumeBool():
        decoder.trust()
    cut = provider.ConsumeIntInRange(0, 64)
    reader = READERS[provider.ConsumeIntInRange(0, len(READERS) - 1)]
    stream = provider.ConsumeBytes(len(data))
    try:
        frames = [frame for part in (stream[:cut], stream[cut:]) for frame in decoder.feed(part)]
        if frames:
            codec.read_hello(frames[0])
    except ProtocolError:
        frames = []
    for side in (ProvingCaller, ProvingListener):
        try:
            proving = side("token", bytes(NONCE_BYTES), "")
            for part in (stream[:cut], stream[cut:]):
                proving.receive(part)
        except ProtocolError:
            continue
        assert not proving.is_done
    # Junk seldom has the length of a frame in front: it is read as the meta of one as well.
    for meta in (stream, *(frame[4] for frame in frames)):
        try:
            once = reader(meta)
        except codec.UNREADABLE:
            continue
        # What was read can be written, and is read again as the same, but for NaN.
        again = reader(codec.pack(once))
        assert again == once or once != once, (once, again)


if __name__ == "__main__":
    atheris.Setup(sys.argv, read)
    atheris.Fuzz()
