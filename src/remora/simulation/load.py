"""Loads: when requests come, made up or recorded.

Rules: pure, but for `read_load`, which reads a file.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from remora.errors import ConfigError
from remora.types import Seconds

#: A line of a proxy's access log: the second in which it was written, and how long it took.
_ACCESS = re.compile(r"^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d) \S+ \S+ (\S+) .* ([\d.]+)ms \S+$")
#: Some minutes of simulating, and a gigabyte of what is remembered of them.
MAX_REQUESTS = 5_000_000
#: `60@5` or `60@5-50`: for so many seconds so many requests per second.
_PART = re.compile(r"^(?P<s>[\d.]+)@(?P<rate>[\d.]+)(-(?P<end>[\d.]+))?$")


class Load(Protocol):
    """When requests come."""

    @property
    def length_s(self) -> Seconds:
        """How long it lasts."""

    def arrivals(self, rng: random.Random) -> Iterator[tuple[Seconds, Seconds | None]]:
        """Give each request's time since the beginning, in order, and how long it takes if known."""


@dataclass(frozen=True)
class Requests:
    """Requests that come by chance, at a rate that changes: parts of a length and two rates each."""

    parts: tuple[tuple[Seconds, float, float], ...]

    @classmethod
    def parse(cls, text: str) -> Requests:
        """Read `60@5,60@50,300@5-10`: seconds, and requests per second, or from one to another.

        Raises:
            ConfigError: it is written differently.
        """
        parts = []
        for word in text.split(","):
            found = _PART.match(word.strip())
            try:
                if found is None:
                    raise ValueError
                rate = float(found["rate"])
                end = rate if found["end"] is None else float(found["end"])
                parts.append((float(found["s"]), rate, end))
            except ValueError:
                raise ConfigError(
                    "load",
                    word,
                    "there is no such file; write SECONDS@RATE or SECONDS@RATE-RATE, parted by "
                    "commas, or the name of a file",
                ) from None
        expected = sum(length * (first + last) / 2 for length, first, last in parts)
        if expected > MAX_REQUESTS:
            raise ConfigError(
                "load",
                text,
                f"that is {expected:.3g} requests, and at most {MAX_REQUESTS:,} are simulated: "
                "a shorter time shows the same",
            )
        return cls(tuple(parts))

    @property
    def length_s(self) -> Seconds:
        """How long it lasts."""
        return sum(length for length, _, _ in self.parts)

    def arrivals(self, rng: random.Random) -> Iterator[tuple[Seconds, Seconds | None]]:
        """Give the times of a Poisson process with this rate."""
        begin = 0.0
        for length, first, last in self.parts:
            highest = max(first, last)
            at = 0.0
            while highest > 0:
                at += rng.expovariate(highest)
                if at >= length:
                    break
                # Thinning: of a process at the highest rate, keep as many as the rate says.
                rate = first + (last - first) * at / length
                if first == last or rng.random() * highest < rate:
                    yield begin + at, None
            begin += length


@dataclass(frozen=True)
class Recorded:
    """Requests that came once: times since the first, and how long each took, if known."""

    requests: tuple[tuple[Seconds, Seconds | None], ...]

    @property
    def length_s(self) -> Seconds:
        """Until the last one."""
        return self.requests[-1][0] if self.requests else 0.0

    def arrivals(self, rng: random.Random) -> Iterator[tuple[Seconds, Seconds | None]]:
        """Give them again."""
        del rng
        return iter(self.requests)


def read_load(text: str, app: str | None = None) -> Load:
    """Read a load: a file's name, or parts as for `Requests.parse`.

    Args:
        text: a file with a time in seconds in each line, and perhaps, after a comma, how many
            seconds the request took; or a proxy's access log; or parts.
        app: of an access log, only the requests of this application; None: all.

    Raises:
        ConfigError: it is neither, or a line cannot be read.
    """
    path = Path(text)
    try:
        if not path.is_file():
            return Requests.parse(text)
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise ConfigError("load", text, f"it cannot be read: {error}") from error
    rows = [line for line in lines if line.strip() and not line.startswith("#")]
    if rows and _ACCESS.match(rows[0]):
        return Recorded(_of_access_log(rows, app))
    return Recorded(_of_csv(text, rows))


def _of_csv(name: str, rows: list[str]) -> tuple[tuple[Seconds, Seconds | None], ...]:
    found: list[tuple[float, float | None]] = []
    for number, row in enumerate(rows, 1):
        words = [word.strip() for word in row.split(",")]
        try:
            found.append((float(words[0]), float(words[1]) if len(words) > 1 else None))
        except ValueError:
            if number > 1:  # the first may have names
                raise ConfigError(
                    "load", row, f"line {number} of {name}: a time in seconds is needed"
                ) from None
    found.sort(key=lambda row: row[0])
    first = found[0][0] if found else 0.0
    return tuple((at - first, took) for at, took in found)


def _of_access_log(rows: list[str], app: str | None) -> tuple[tuple[Seconds, Seconds | None], ...]:
    """Take requests apart that were written in one second: they are spread over it."""
    seconds: dict[float, list[float]] = {}
    for row in rows:
        found = _ACCESS.match(row)
        if found is None or (app is not None and found[2] != app):
            continue
        stamp = time.mktime(time.strptime(found[1], "%Y-%m-%dT%H:%M:%S"))
        seconds.setdefault(stamp, []).append(float(found[3]) / 1000)
    requests = [
        (second + index / len(took) - each, each)
        for second, took in seconds.items()
        for index, each in enumerate(took)
    ]
    requests.sort()
    first = requests[0][0] if requests else 0.0
    return tuple((at - first, took) for at, took in requests)
