"""Take all samples of the selected rows, the limit and Remora in turn within each round.

Theory of operation: rows that share a scene share its servers. Within a round each row is sampled
on the limit and then on Remora, in the next round the other way round, so what the machine does
over minutes hits both alike. Peers come after, one alone at a time, because some of them keep a
core busy while idle. Rows of start and memory own their servers and run with nothing else alive.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.processes import TargetError
from benchmarks.rows import FRESH, Row, Sampling
from benchmarks.samples import SAMPLES
from benchmarks.sides import LIMIT, Side
from benchmarks.targets import Target


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    Attributes:
        rounds: samples of each row and side.
        duration_s: length of one sample of a rate or latency, whole seconds.
        start_rounds: samples of a start; one more, uncounted, comes first and fills the caches.
        memory_rounds: samples of memory, which hardly varies.
    """

    rounds: int
    duration_s: int
    start_rounds: int
    memory_rounds: int


FULL = Effort(rounds=5, duration_s=3, start_rounds=7, memory_rounds=3)
QUICK = Effort(rounds=3, duration_s=1, start_rounds=3, memory_rounds=1)


@dataclass
class Outcome:
    """What one side did in one row: samples, or why there are none."""

    samples: list[float] = field(default_factory=list)
    error: str | None = None


#: Outcomes by (row key, side name).
Outcomes = dict[tuple[str, str], Outcome]


class Session:
    """One run over a machine.

    Args:
        effort: how long to measure.
        scratch: folder for the state of the targets.
        say: receives a line for each thing that happens.
    """

    def __init__(self, effort: Effort, scratch: Path, say: Callable[[str], None]) -> None:
        self._effort = effort
        self._scratch = scratch
        self._say = say
        self.outcomes: Outcomes = {}

    def measure(self, rows: Sequence[Row], sides: Sequence[Side]) -> None:
        """Take the samples of `rows` on `sides` in turn, those that a side can do.

        Errors of a target are recorded in `outcomes`, not raised.
        """
        steady = [row for row in rows if row.sampling not in FRESH]
        for scene in dict.fromkeys(row.scene for row in steady):
            self._measure_scene(scene, [row for row in steady if row.scene == scene], sides)
        for row in rows:
            if row.sampling in FRESH:
                self._measure_fresh(row, sides)

    def _measure_scene(self, scene: str, rows: Sequence[Row], sides: Sequence[Side]) -> None:
        with ExitStack() as stack:
            live: list[tuple[Side, Target]] = []
            for side in sides:
                todo = [row for row in rows if _takes_part(side, row)]
                if not todo:
                    continue
                target = side.scenes[scene](self._scratch)
                stack.callback(target.stop)
                if self._started(target, side, todo):
                    live.append((side, target))
            if not live:
                return
            # An uncounted first sample: caches, lazy imports and connection pools are filled.
            self._round(rows, live, seconds=1, counted=False)
            for number in range(self._effort.rounds):
                turn = live if number % 2 == 0 else live[::-1]
                self._say(f"{scene}: round {number + 1} of {self._effort.rounds}")
                self._round(rows, turn, seconds=self._effort.duration_s, counted=True)

    def _round(
        self,
        rows: Sequence[Row],
        turn: Sequence[tuple[Side, Target]],
        *,
        seconds: int,
        counted: bool,
    ) -> None:
        for row in rows:
            for side, target in turn:
                if _takes_part(side, row) and self._sample(row, side, target, seconds, counted):
                    # What broke one row must not decide the next: go on with a fresh target.
                    target.stop()
                    self._started(target, side, rows)

    def _measure_fresh(self, row: Row, sides: Sequence[Side]) -> None:
        is_start = row.sampling is Sampling.START
        rounds = self._effort.start_rounds if is_start else self._effort.memory_rounds
        taking = [(side, side.scenes[row.scene]) for side in sides if _takes_part(side, row)]
        if not taking:
            return
        for number in range(-1 if is_start else 0, rounds):
            self._say(
                f"{row.key}: " + (f"round {number + 1} of {rounds}" if number >= 0 else "warm")
            )
            for side, make in taking if number % 2 == 0 else taking[::-1]:
                target = make(self._scratch)
                with ExitStack() as stack:
                    stack.callback(target.stop)
                    self._sample(row, side, target, self._effort.duration_s, number >= 0)

    def _started(self, target: Target, side: Side, rows: Sequence[Row]) -> bool:
        try:
            self._say(f"{side.name}: ready after {target.start():.2f} s")
        except TargetError as error:
            for row in rows:
                self._fail(row, side, error)
            return False
        return True

    def _sample(self, row: Row, side: Side, target: Target, seconds: int, counted: bool) -> bool:
        """Take one sample; tell whether it broke the target."""
        outcome = self._outcome(row, side)
        if outcome.error is not None:
            return False
        begin = time.perf_counter()
        try:
            figure = SAMPLES[row.sampling](target, seconds)
        except TargetError as error:
            self._fail(row, side, error)
            return True
        if counted:
            outcome.samples.append(figure)
            took_s = time.perf_counter() - begin
            self._say(
                f"  {row.key:<12}{side.name:<9}{figure:>14,.3f} {row.unit:<9}({took_s:.1f} s)"
            )
        return False

    def _outcome(self, row: Row, side: Side) -> Outcome:
        return self.outcomes.setdefault((row.key, side.name), Outcome())

    def _fail(self, row: Row, side: Side, error: TargetError) -> None:
        outcome = self._outcome(row, side)
        if outcome.error is None:
            outcome.error = str(error)
            self._say(f"  {row.key}: {side.name} failed: {error}")


def _takes_part(side: Side, row: Row) -> bool:
    """Tell whether a side has a figure for a row. Pure."""
    return row.scene in side.scenes and (side.name != LIMIT or row.limit is not None)
