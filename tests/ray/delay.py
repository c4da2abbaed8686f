"""A cable that takes its time: carries frames between two TAP devices, each after a delay.

    python -m tests.ray.delay ONE OTHER DELAY_S

Makes the two devices, says so, and carries until it is killed. (`tc qdisc … netem` would do the same where the
kernel has it.)
"""

from __future__ import annotations

import fcntl
import os
import select
import struct
import sys
import time
from collections import deque
from contextlib import suppress

_TUNSETIFF = 0x400454CA
_TAP_WITHOUT_HEADER = 0x0002 | 0x1000
_FRAME_BYTES = 65536
#: The kernel wakes a process up to about this late: what is due so soon is waited for awake.
_AWAKE_S = 0.0002


def open_tap(name: str) -> int:
    """Make a TAP device; returns what its frames are read from and written to."""
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH14x", name.encode(), _TAP_WITHOUT_HEADER))
    return fd


def carry(one: int, other: int, delay_s: float) -> None:
    """Carry frames both ways, for ever."""
    poll = select.epoll()
    ways = {one: other, other: one}
    for fd in ways:
        poll.register(fd, select.EPOLLIN)
    on_the_way: deque[tuple[float, int, bytes]] = deque()
    while True:
        rest_s = on_the_way[0][0] - time.monotonic() if on_the_way else None
        wait_s = -1 if rest_s is None else max(0.0, rest_s - _AWAKE_S)
        for fd, _ in poll.poll(wait_s):
            with suppress(BlockingIOError):
                while True:
                    frame = os.read(fd, _FRAME_BYTES)
                    on_the_way.append((time.monotonic() + delay_s, ways[fd], frame))
        now = time.monotonic()
        while on_the_way and on_the_way[0][0] <= now:
            _, target, frame = on_the_way.popleft()
            with suppress(OSError):  # A device that is down, or full: as a cable, it loses frames.
                os.write(target, frame)


def main() -> None:
    """Carry between the devices that the command line names."""
    one, other = (open_tap(name) for name in sys.argv[1:3])
    with suppress(OSError):
        # It competes with what it is to measure.
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))
    print("ready", flush=True)
    carry(one, other, float(sys.argv[3]))


if __name__ == "__main__":
    main()
