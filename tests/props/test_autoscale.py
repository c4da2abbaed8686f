"""Demand, formula, delays: what holds for every load."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from remora.config import AutoscalingConfig
from remora.core.autoscale.capacity import Bounds, bounds_of, scaled, whole_gangs
from remora.core.autoscale.decide import Decision, decide
from remora.core.autoscale.demand import Demand
from remora.core.autoscale.formula import wanted
from remora.core.autoscale.given import Asked, Memory, Situation
from remora.core.autoscale.timeline import RESOLUTION_S, Timeline
from remora.types import ReplicaID

START = 1000.0
loads = st.floats(0, 1000, allow_nan=False).map(lambda x: round(x, 2))
#: Steps that are far enough from each other to stay apart.
gaps = st.floats(2 * RESOLUTION_S, 50, allow_nan=False)
factors = st.floats(0.05, 3, allow_nan=False)


def replica(number: int) -> ReplicaID:
    return ReplicaID(f"default/Model#{number}")


# ------------------------------------------------------------------------------------- timeline


@given(st.lists(st.tuples(gaps, loads), max_size=40), st.floats(0, 500), st.floats(0.02, 500))
def test_aggregates_are_those_of_the_steps(
    steps: list[tuple[float, float]], begin: float, length: float
) -> None:
    line = Timeline(START)
    points = [(START, 0.0)]
    now = START
    for gap, value in steps:
        now += gap
        line.set(now, value, keep_s=10_000)
        points.append((now, value))
    end = max(now, START + begin + length)
    start = min(START + begin, end - length)
    spans = []
    for (at, value), (until, _) in zip(points, [*points[1:], (end, 0.0)], strict=True):
        low, high = max(at, start), min(until, end)
        if at == START:
            low = start  # before the first step it had the value of the first step
        if high > low:
            spans.append((high - low, value))
    total = sum(span * value for span, value in spans)
    assert line.aggregate("mean", start, end) == pytest.approx(total / (end - start), abs=1e-6)
    assert line.aggregate("max", start, end) == max(value for _, value in spans)
    assert line.aggregate("min", start, end) == min(value for _, value in spans)


@given(st.lists(st.tuples(st.floats(0.0, 3.0), loads), min_size=1, max_size=60))
def test_a_mean_lies_between_the_extremes(steps: list[tuple[float, float]]) -> None:
    line = Timeline(START)
    now = START
    for gap, value in steps:
        now += gap
        line.set(now, value, keep_s=30)
    low, mean, high = (line.aggregate(how, now - 30, now + 1) for how in ("min", "mean", "max"))
    # Steps that are closer than the resolution are one, so it is as exact as that.
    assert low - 1e-6 <= mean <= high + 1e-6


def test_forgets_what_nobody_asks_for_and_nothing_else() -> None:
    line, whole = Timeline(0.0), Timeline(0.0)
    for number in range(5000):
        line.set(number * 0.1, float(number % 7), keep_s=5)
        whole.set(number * 0.1, float(number % 7), keep_s=1e9)
    assert len(line.points(0.0)) < 1200
    assert line.aggregate("mean", 495.0, 500.0) == pytest.approx(
        whole.aggregate("mean", 495.0, 500.0)
    )


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), max_size=30))
def test_the_total_is_the_sum_over_sources_at_every_instant(
    reports: list[tuple[int, int]],
) -> None:
    demand = Demand(START)
    demand.expect([replica(0), replica(1)], START, 30)
    latest = {0: 0, 1: 0, 2: 0, 3: 0}
    now = START
    for source, num in reports:
        now += 0.1
        latest[source] = num
        if source < 2:
            demand.report_running(replica(source), num, now, 30)
        else:
            demand.report_queued(f"router-{source}", num, now, 30)
        assert demand.total.value == sum(latest.values())
        assert demand.queued.value == latest[2] + latest[3]
    demand.expect([replica(1)], now + 0.1, 30)
    assert demand.running.value == latest[1]


# -------------------------------------------------------------------------------------- formula


@given(loads, loads, st.integers(0, 50), st.integers(0, 50), factors, factors)
def test_more_demand_never_asks_for_fewer(
    one: float, other: float, running: int, target: int, up: float, down: float
) -> None:
    config = AutoscalingConfig(
        upscaling_factor=up, downscaling_factor=down, target_ongoing_requests=2
    )
    low, high = sorted((one, other))
    assert wanted(config, low, running, target) <= wanted(config, high, running, target)


@given(loads, st.integers(1, 50), st.floats(0.1, 20))
def test_without_factors_each_replica_gets_its_target(
    total: float, running: int, per_replica: float
) -> None:
    config = AutoscalingConfig(target_ongoing_requests=per_replica)
    found = wanted(config, total, running, running)
    assert found * per_replica >= total - 1e-6
    assert (found - 1) * per_replica <= total + 1e-6 or found == 0


@given(st.integers(2, 50), factors)
def test_a_small_factor_still_makes_it_smaller(running: int, factor: float) -> None:
    config = AutoscalingConfig(downscaling_factor=factor, target_ongoing_requests=1)
    assert wanted(config, running - 1.0, running, running) <= running - 1


@pytest.mark.parametrize(
    ("total", "running", "up", "down", "expected"),
    [
        (20, 1, None, None, 10),
        (21, 1, None, None, 11),
        (20, 1, 0.5, None, 6),  # ceil(1 + 0.5 x 9)
        (2, 10, None, None, 1),
        (2, 10, None, 0.5, 6),  # ceil(10 - 0.5 x 9)
        (16, 10, None, 0.1, 9),  # ceil(9.8) would be 10
        (0.6 * 3 / 0.3, 3, None, None, 3),  # a quotient of 3.0000000000000004 is 3
    ],
)
def test_some_numbers(
    total: float, running: int, up: float | None, down: float | None, expected: int
) -> None:
    config = AutoscalingConfig(
        target_ongoing_requests=2, upscaling_factor=up, downscaling_factor=down
    )
    assert wanted(config, total, running, running) == expected


# ------------------------------------------------------------------------------------- capacity


@given(st.integers(0, 200), st.one_of(st.none(), st.floats(0, 100)))
def test_a_share_of_something_is_something(num: int, capacity: float | None) -> None:
    share = scaled(num, capacity)
    assert 0 <= share <= max(num, 0)
    if num and capacity:
        assert share >= 1
    if capacity == 0 or num == 0:
        assert share == 0


@pytest.mark.parametrize(
    ("num", "capacity", "share"), [(5, 50, 3), (3, 50, 2), (4, 10, 1), (1, 1, 1), (7, None, 7)]
)
def test_half_a_replica_is_one(num: int, capacity: float | None, share: int) -> None:
    assert scaled(num, capacity) == share


@given(st.integers(0, 20), st.integers(1, 50), st.integers(0, 100), st.integers(1, 5))
def test_what_is_clipped_is_within_and_in_whole_gangs(
    low: int, high: int, num: int, gang: int
) -> None:
    assume(whole_gangs(low, gang) <= high // gang * gang)
    found = Bounds(low, high, gang).clip(num)
    assert low <= found <= high
    assert found % gang == 0
    if low <= num <= high // gang * gang:
        assert num <= found < num + gang


# ------------------------------------------------------------------------------------- decisions


@dataclass
class Deployment:
    """A deployment whose replicas come and go at once, with its decisions so far."""

    config: AutoscalingConfig
    target: int
    now: float = START
    silent: tuple[str, ...] = ()
    asked: Asked | None = None
    memory: Memory = field(default_factory=Memory)
    changes: list[tuple[float, int, int]] = field(default_factory=list)
    look_at: float | None = None

    def __post_init__(self) -> None:
        self.demand = Demand(self.now)
        self._expect()

    def _expect(self) -> None:
        self.demand.expect([replica(n) for n in range(self.target)], self.now, self.keep_s)

    @property
    def keep_s(self) -> float:
        return self.config.look_back_period_s

    def load(self, total: float) -> None:
        """So much is asked from now on; it waits in a router, which is the same to a decision."""
        self.demand.report_queued("router", total, self.now, self.keep_s)
        self.decide()

    def decide(self) -> Decision:
        """Decide until nothing changes any more, as the controller does."""
        for _ in range(60):
            before = self.target
            decision = self._decide_once()
            if self.target == before:
                return decision
        raise AssertionError(f"flaps: {self.changes[-6:]}")

    def _decide_once(self) -> Decision:
        situation = Situation(self.target, self.target, bounds_of(self.config), silent=self.silent)
        decision = decide(self.config, self.demand, self.memory, situation, self.now, self.asked)
        self.memory = decision.memory
        self.look_at = decision.look_at
        if decision.target != self.target:
            self.changes.append((self.now, self.target, decision.target))
            self.target = decision.target
            self._expect()
        return decision

    def run(self, seconds: float) -> None:
        """Let time pass; decide when the last decision said so."""
        end = self.now + seconds
        while self.look_at is not None and self.look_at <= end:
            assert self.look_at > self.now, "a decision that calls for itself at once never ends"
            self.now = self.look_at
            self.decide()
        self.now = end


configs = st.builds(
    AutoscalingConfig,
    min_replicas=st.integers(0, 3),
    max_replicas=st.integers(3, 20),
    target_ongoing_requests=st.sampled_from([0.5, 1.0, 2.0, 7.0]),
    look_back_period_s=st.sampled_from([1.0, 10.0, 30.0, 120.0]),
    upscale_delay_s=st.sampled_from([0.0, 1.0, 30.0]),
    downscale_delay_s=st.sampled_from([0.0, 5.0, 60.0]),
    downscale_to_zero_delay_s=st.sampled_from([None, 0.0, 90.0]),
    aggregation_function=st.sampled_from(["mean", "max", "min"]),
    upscaling_factor=st.sampled_from([None, 0.3, 1.0, 2.0]),
    downscaling_factor=st.sampled_from([None, 0.3, 1.0]),
    panic_window_s=st.sampled_from([None, 3.0]),
    spare_replicas=st.sampled_from([0, 2]),
)
histories = st.lists(
    st.tuples(st.floats(0.05, 90), st.integers(0, 240).map(lambda n: n / 4)), max_size=25
)


@given(configs, histories, st.data())
def test_stays_within_bounds_and_never_shrinks_while_a_replica_is_silent(
    config: AutoscalingConfig, history: list[tuple[float, float]], data: st.DataObject
) -> None:
    one = Deployment(config, config.first_replicas)
    for seconds, load in history:
        one.silent = ("Model#1",) if data.draw(st.booleans()) else ()
        changes = len(one.changes)
        one.load(load)
        one.run(seconds)
        assert config.min_replicas <= one.target <= config.max_replicas
        for _, before, after in one.changes[changes:]:
            assert after > before or not one.silent


@given(configs, histories)
def test_delays_lie_between_changes(
    config: AutoscalingConfig, history: list[tuple[float, float]]
) -> None:
    one = Deployment(config, config.first_replicas)
    for seconds, load in history:
        one.load(load)
        one.run(seconds)
    last = START
    for at, before, after in one.changes:
        if after < before:
            needed = config.to_zero_delay_s if after == 0 else config.downscale_delay_s
            assert at - last >= needed - 1e-3
            assert after > 0 or before == 1
        elif before > 0 and config.panic_window_s is None:
            assert at - last >= config.upscale_delay_s - 1e-3
        last = at


@given(configs, st.integers(0, 240).map(lambda n: n / 4), st.integers(0, 20))
@example(AutoscalingConfig(max_replicas=20, upscaling_factor=0.3), 60.0, 1)
def test_a_steady_load_ends_in_a_steady_number(
    config: AutoscalingConfig, load: float, begin: int
) -> None:
    one = Deployment(config, bounds_of(config).clip(begin))
    one.load(load)
    one.run(2500.0)
    ends = len(one.changes)
    one.run(1000.0)
    assert len(one.changes) == ends
    # No way there and back, unless somebody wants to overshoot.
    directions = {after > before for _, before, after in one.changes if before > 0}
    assert len(directions) <= 1 or config.up_factor > 1
    # In the end nothing is left to look at.
    assert one.look_at is None
    spare = config.spare_replicas if load else 0
    needed = bounds_of(config).clip(math.ceil(load / config.target_ongoing_requests - 1e-9) + spare)
    if config.upscaling_factor in (None, 1.0) and config.downscaling_factor in (None, 1.0):
        assert one.target == needed


@given(
    quiet=st.floats(0, 2),
    quiet_s=st.floats(0, 500),
    burst=st.floats(2.5, 100),
    delay_s=st.sampled_from([0.0, 0.3, 1.0, 5.0, 30.0, 60.0]),
    window_s=st.sampled_from([1.0, 10.0, 30.0, 300.0]),
)
def test_a_burst_is_answered_within_a_second_of_the_delay(
    quiet: float, quiet_s: float, burst: float, delay_s: float, window_s: float
) -> None:
    config = AutoscalingConfig(
        max_replicas=100, upscale_delay_s=delay_s, look_back_period_s=window_s
    )
    one = Deployment(config, 1)
    one.load(quiet)
    one.run(quiet_s)
    began = one.now
    one.load(burst)
    one.run(delay_s + 1.0)
    (first, *_) = one.changes
    assert delay_s - 1e-3 <= first[0] - began <= delay_s + 1.0


@given(
    st.lists(st.tuples(st.floats(0.0, 3.0), st.floats(0.02, 0.4)), min_size=1, max_size=30),
    st.sampled_from([2.0, 10.0, 30.0]),
)
def test_noise_around_a_load_that_fits_scales_nothing(
    noise: list[tuple[float, float]], delay_s: float
) -> None:
    config = AutoscalingConfig(
        max_replicas=9, upscale_delay_s=delay_s, downscale_delay_s=30, look_back_period_s=30
    )
    one = Deployment(config, 1)
    # Three requests where two are the target, but for less than half of the time.
    for extra, seconds in noise * 3:
        one.load(1.0 + (2.0 if extra > 1.5 else 0.0))
        one.run(seconds)
        one.load(0.5)
        one.run(1.0)
    assert one.changes == []


def test_a_burst_between_blips_does_not_wait_for_their_end() -> None:
    """A blip neither hurries growth nor holds up shrinking."""
    config = AutoscalingConfig(
        max_replicas=10, upscale_delay_s=5, downscale_delay_s=60, look_back_period_s=30
    )
    one = Deployment(config, 10)
    for _ in range(20):
        one.load(40.0)
        one.run(0.1)
        one.load(2.0)
        one.run(9.9)
    assert one.changes[0][1] == 10
    first = one.changes[0][0] - START
    # From when the mean over the window is low enough, on; blips come every ten seconds.
    assert first < 60 + 30 + 5


def test_growth_is_not_undone_by_the_quiet_before_it() -> None:
    config = AutoscalingConfig(
        max_replicas=10, upscale_delay_s=0, downscale_delay_s=0, look_back_period_s=60
    )
    one = Deployment(config, 1)
    one.run(300.0)
    one.load(20.0)
    one.run(600.0)
    assert [(before, after) for _, before, after in one.changes] == [(1, 10)]


# --------------------------------------------------------------------------- policies of users


@given(st.floats(0, 30), st.integers(1, 9))
def test_what_a_policy_asks_for_is_rounded_up_and_clipped(num: float, begin: int) -> None:
    config = AutoscalingConfig(max_replicas=9, upscale_delay_s=0, downscale_delay_s=0)
    one = Deployment(config, begin)
    one.asked = Asked(num, policy="mine")
    one.decide()
    one.run(10.0)
    assert one.target == max(1, min(9, math.ceil(num - 1e-9)))


@given(st.integers(0, 9))
def test_a_policy_without_an_answer_changes_nothing(begin: int) -> None:
    config = AutoscalingConfig(
        min_replicas=0, max_replicas=9, upscale_delay_s=0, downscale_delay_s=0
    )
    one = Deployment(config, begin)
    one.asked = Asked(None, error="it failed", policy="mine")
    one.run(100.0)
    decision = one.decide()
    assert one.changes == []
    assert decision.record.error == "it failed"
    assert [limit.name for limit in decision.record.limits] == ["error"]


def test_where_nothing_runs_a_request_starts_a_replica_whatever_the_policy_says() -> None:
    config = AutoscalingConfig(min_replicas=0, max_replicas=9)
    one = Deployment(config, 0)
    one.asked = Asked(0.0, policy="mine")
    one.load(1.0)
    assert one.target == 1


def test_where_nothing_runs_a_policy_is_obeyed_at_once() -> None:
    config = AutoscalingConfig(min_replicas=0, max_replicas=9, upscaling_factor=0.1)
    one = Deployment(config, 0)
    one.asked = Asked(4.0, policy="mine")
    one.decide()
    assert one.target == 4


def test_two_steps_lead_to_zero() -> None:
    config = AutoscalingConfig(
        min_replicas=0,
        max_replicas=5,
        downscale_delay_s=10,
        downscale_to_zero_delay_s=40,
        look_back_period_s=1,
    )
    one = Deployment(config, 5)
    one.decide()
    one.run(100.0)
    assert [(before, after) for _, before, after in one.changes] == [(5, 1), (1, 0)]
    assert [round(at - START) for at, _, _ in one.changes] == [10, 50]


def test_the_default_policy_where_nothing_runs_and_nothing_is_asked_stays() -> None:
    config = AutoscalingConfig(min_replicas=0, max_replicas=5)
    one = Deployment(config, 0)
    one.decide()
    one.run(1000.0)
    assert one.changes == []


def test_spare_replicas_stand_by_while_something_is_asked() -> None:
    config = AutoscalingConfig(
        min_replicas=0,
        max_replicas=9,
        upscale_delay_s=0,
        downscale_delay_s=5,
        look_back_period_s=1,
        spare_replicas=2,
    )
    one = Deployment(config, 1)
    one.load(4.0)
    one.run(10.0)
    assert one.target == 4
    one.load(0.0)
    one.run(30.0)
    assert one.target == 0


def test_panic_skips_the_delay_and_keeps_what_it_started() -> None:
    config = AutoscalingConfig(
        max_replicas=20,
        upscale_delay_s=300,
        downscale_delay_s=0,
        look_back_period_s=60,
        panic_window_s=6,
    )
    one = Deployment(config, 1)
    one.load(1.0)
    one.run(200.0)
    began = one.now
    one.load(20.0)
    one.run(6.0)
    grown = one.target
    assert grown > 1
    one.load(1.0)
    one.run(40.0)
    assert one.target >= grown, "none is stopped while the panic lasts"
    one.run(200.0)
    assert one.target == 1
    assert one.changes[0][0] - began < 6.0


@given(configs, histories)
def test_a_record_tells_how_the_target_came_about(
    config: AutoscalingConfig, history: list[tuple[float, float]]
) -> None:
    one = Deployment(config, config.first_replicas)
    for seconds, load in history:
        one.load(load)
        before = one.target
        record = one.decide().record
        assert (record.before, record.after) == (before, one.target)
        assert record.total == pytest.approx(record.queued + record.ongoing, abs=1e-6) or (
            config.aggregation_function != "mean"
        )
        assert record.reason
        if record.limits:
            *_, last = record.limits
            assert last.num == record.after or last.name in ("panic", "bounds", "spare")
        one.run(seconds)
