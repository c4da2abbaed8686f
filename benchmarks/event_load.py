"""Many event streams read at once by one thread that does as little as it can with each byte."""

from __future__ import annotations

import re
import selectors
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack

from benchmarks.processes import TargetError
from benchmarks.stats import percentile

NUM_STREAMS = 128
_END = b"\n\n"
_STAMP = re.compile(rb"data: (\d+)\n\n")
_READ_BYTES = 1 << 20
#: Streams that are all open are read for so long before anything counts.
_WARM_UP_S = 0.5


def events_per_s(port: int, duration_s: float, path: str = "/fast") -> float:
    """Return how many events a second come out of all streams together.

    Raises:
        TargetError: a stream ended or was refused.
    """
    count = 0

    def take(_: int, data: bytes) -> None:
        nonlocal count
        count += data.count(_END)

    def restart() -> None:
        nonlocal count
        count = 0

    took_s = _read_all(port, path, duration_s, take, restart)
    return count / took_s


def gap_p99_over_ms(port: int, duration_s: float, path: str = "/paced") -> float:
    """Return by how much the gaps at the client are larger than at the generator, in ms.

    Compared are the 99th percentiles of the time between two events of one stream, as the
    generator wrote it into them and as they came here.
    """
    seen: dict[int, tuple[int, int]] = {}
    made_gaps: list[float] = []
    come_gaps: list[float] = []

    def take(stream: int, data: bytes) -> None:
        now = time.monotonic_ns()
        for stamp in _STAMP.findall(data):
            made = int(stamp)
            if stream in seen:
                before_made, before_come = seen[stream]
                made_gaps.append((made - before_made) / 1e6)
                come_gaps.append((now - before_come) / 1e6)
            seen[stream] = (made, now)

    def restart() -> None:
        seen.clear()
        made_gaps.clear()
        come_gaps.clear()

    _read_all(port, path, duration_s, take, restart)
    if len(come_gaps) < NUM_STREAMS:
        raise TargetError(f"only {len(come_gaps)} gaps came out of {NUM_STREAMS} streams")
    return percentile(come_gaps, 0.99) - percentile(made_gaps, 0.99)


def _read_all(
    port: int,
    path: str,
    duration_s: float,
    take: Callable[[int, bytes], None],
    restart: Callable[[], None],
) -> float:
    """Read all streams for a while; returns the seconds since `restart` was called."""
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()
    with ExitStack() as stack, selectors.DefaultSelector() as selector:
        for number in range(NUM_STREAMS):
            stream = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
            stream.sendall(request)
            stream.setblocking(False)
            selector.register(stream, selectors.EVENT_READ, number)
        begin = time.perf_counter() + _WARM_UP_S
        end = begin + duration_s
        counts = False
        while (now := time.perf_counter()) < end:
            if not counts and now >= begin:
                counts = True
                begin = now
                restart()
            for key, _ in selector.select(0.1):
                source = key.fileobj
                assert isinstance(source, socket.socket)
                try:
                    data = source.recv(_READ_BYTES)
                except BlockingIOError:
                    continue
                if not data:
                    raise TargetError(f"stream {key.data} of {path} ended")
                take(key.data, data)
        return time.perf_counter() - begin
