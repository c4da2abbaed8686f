"""The decision: from demand to the number of replicas that there should be.

Theory of operation: a policy turns demand into a number. If that is more than the target for
`upscale_delay_s`, or less for `downscale_delay_s`, it becomes the target.

What makes a burst quick stands in `window.py`: growth is decided on the demand since it began, and
its delay begins with it.

Rules: pure. What must be remembered between two decisions is a value, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from remora.core.autoscale.demand import Demand
from remora.core.autoscale.formula import ceil, explained, wanted
from remora.core.autoscale.given import Asked, Memory, Situation
from remora.core.autoscale.record import Limit, ScalingRecord
from remora.core.autoscale.window import Window, look
from remora.options.autoscaling import AutoscalingConfig
from remora.types import Seconds

#: Clocks of computers do not agree on less.
TOLERANCE_S: Seconds = 1e-6
#: A rise that is younger may be one request that comes a moment before another one goes.
MIN_RISE_S: Seconds = 0.5
#: While the window is not all the same, it says something else so many times in its length.
_LOOKS_PER_WINDOW = 10
_SHORTEST_LOOK_S: Seconds = 0.1


@dataclass(frozen=True)
class Decision:
    """The outcome.

    Attributes:
        target: replicas that there should be from now on.
        look_at: decide again then, even if nothing is reported; None: no need.
    """

    target: int
    memory: Memory
    look_at: Seconds | None
    _deciding: _Deciding

    @property
    def record(self) -> ScalingRecord:
        """How it came about; written when somebody wants to know."""
        return self._deciding.record(self.target)


def decide(
    config: AutoscalingConfig,
    demand: Demand,
    memory: Memory,
    situation: Situation,
    now: Seconds,
    asked: Asked | None = None,
) -> Decision:
    """Decide how many replicas there should be.

    Args:
        config: how the deployment is scaled.
        demand: what is asked of it.
        memory: from the decision before.
        situation: what there is.
        now: the present.
        asked: what a policy of the user's said; None: the default policy decides.

    Pure. Invariants: the target stays within the bounds; it never shrinks while a replica is
    silent; without delays and with steady demand it is what the policy asks for.
    """
    window = look(config, demand, memory, situation.target, now)
    return _Deciding(config, demand, memory, situation, now, asked, window).decide()


class _Deciding:
    """One decision under way: the numbers so far, what limited them, and what is remembered."""

    __slots__ = (
        "asked",
        "config",
        "demand",
        "down_since_s",
        "limits",
        "look_at",
        "memory",
        "now",
        "panic_s",
        "situation",
        "up_since_s",
        "window",
    )

    def __init__(
        self,
        config: AutoscalingConfig,
        demand: Demand,
        memory: Memory,
        situation: Situation,
        now: Seconds,
        asked: Asked | None,
        window: Window,
    ) -> None:
        self.config = config
        self.demand = demand
        self.memory = memory
        self.situation = situation
        self.now = now
        self.asked = asked
        self.window = window
        #: Each with what it says; written only for those who want to read it.
        self.limits: list[tuple[str, int, Callable[[], str]]] = []
        self.look_at: Seconds | None = None
        self.up_since_s = memory.up_since_s
        self.down_since_s = memory.down_since_s
        self.panic_s = memory.panic_s

    def decide(self) -> Decision:
        """Go from demand to the target, step by step."""
        target = self.situation.target
        is_cold = self.situation.running == 0 and self.demand.total.value > 0
        up, down = self._numbers(is_cold)
        if up is None or down is None:
            return self._stay(target)
        asked_up = self._panic(up)
        up, down = self._fit(asked_up), self._fit(down)
        if up != asked_up:
            self._limit("bounds", up, lambda: f"bounds are {self._bounds_text()}: {up}")
        new = target
        if self._fit(target) != target:
            new = self._fit(target)
            self._limit("bounds", new, lambda: f"bounds are {self._bounds_text()} now")
        elif up > target:
            # Whoever asks for replicas where none runs need not ask twice.
            at_once = is_cold or self.panic_s is not None or self.situation.running == 0
            new = self._grow(up, at_once=at_once)
        else:
            self.up_since_s = None
        if new == target:
            new = self._shrink(down, is_rising=up > target)
        self._wake_while_window_changes()
        return Decision(new, self._remember(new), self.look_at, self)

    # ------------------------------------------------------------------------------- numbers

    def _numbers(self, is_cold: bool) -> tuple[int | None, int | None]:
        """What the policy asks for: for growing, and for shrinking."""
        config, window, situation = self.config, self.window, self.situation
        running, target = situation.running, situation.target
        if self.asked is None or is_cold:
            if running == 0 and not is_cold:
                return target, target
            if is_cold:
                up = max(wanted(config, self.demand.total.value, 0, target), target)
                return up, up
            up = wanted(config, window.growing, running, target)
            down = up
            if window.shrinking != window.growing:
                down = wanted(config, window.shrinking, running, target)
            if not config.spare_replicas:
                return up, down
            wide = self._with_spare(up, window.growing)
            if wide != up:
                self._limit("spare", wide, lambda: f"{config.spare_replicas} to spare: {wide}")
            return wide, self._with_spare(down, window.shrinking)
        if self.asked.num is None:
            return None, None
        # Its own number may be a fraction; it goes through delays and factors like ours.
        num = self._with_factor(self.asked.num)
        return num, num

    def _with_factor(self, num: float) -> int:
        running = self.situation.running
        if running == 0 or num == running:
            return max(0, ceil(num))
        factor = self.config.up_factor if num > running else self.config.down_factor
        found = ceil(running + factor * (num - running))
        if ceil(num) < running <= found:
            found = running - 1
        return max(0, found)

    def _with_spare(self, num: int, total: float) -> int:
        return num + self.config.spare_replicas if total > 0 else num

    def _panic(self, up: int) -> int:
        """Look at the short window; in panic at least what it asks for is wanted, at once."""
        config = self.config
        if config.panic_window_s is None:
            self.panic_s = None
            return up
        start = max(self.now - config.panic_window_s, self.demand.since_s)
        burst = self.demand.total.aggregate("mean", start, self.now)
        made_for = config.target_ongoing_requests * max(1, self.situation.running)
        if burst >= config.panic_threshold * made_for and self.now > start:
            self.panic_s = self.now
        lasts_s = config.look_back_period_s - TOLERANCE_S
        if self.panic_s is None or self.now - self.panic_s >= lasts_s:
            self.panic_s = None
            return up
        needed = ceil(burst / config.target_ongoing_requests)
        if needed > up:
            self._limit(
                "panic",
                needed,
                lambda: (
                    f"panic: {burst:.4g} requests over {config.panic_window_s:g} s ask for {needed}"
                ),
            )
        return max(up, needed)

    def _fit(self, num: int) -> int:
        return self.situation.bounds.clip(num)

    def _bounds_text(self) -> str:
        bounds = self.situation.bounds
        gangs = f" in gangs of {bounds.gang}" if bounds.gang > 1 else ""
        return f"{bounds.low}..{bounds.high}{gangs}"

    # ------------------------------------------------------------------------------ directions

    def _grow(self, up: int, *, at_once: bool) -> int:
        now = self.now
        since = self.up_since_s
        since = now if since is None or self.window.begins else since
        delay_s = 0.0 if at_once else self.config.upscale_delay_s
        if not at_once and self.window.by_rise:
            delay_s = max(delay_s, MIN_RISE_S)
        self.up_since_s = since
        if now - since >= delay_s - TOLERANCE_S:
            return up
        self._delay("upscale_delay", f"{_are(up)} wanted", since, since + delay_s)
        return self.situation.target

    def _shrink(self, down: int, *, is_rising: bool) -> int:
        target, now, config = self.situation.target, self.now, self.config
        since = self.down_since_s
        self.down_since_s = None
        if down >= target or self._keeps_all(down):
            return target
        new = down
        if down == 0 and target > 1 and self.situation.bounds.low == 0:
            new = self._fit(1)
            self._limit("one_at_last", new, lambda: "the last one goes alone")
            if new >= target:
                new = 0
        if new == 0 and self.demand.total.value > 0:
            self._limit("in_use", target, lambda: "something is asked: the last one stays")
            return target
        delay_s = config.to_zero_delay_s if new == 0 else config.downscale_delay_s
        since = now if since is None else since
        self.down_since_s = since
        if is_rising:
            # If it lasts, it ends the delay; if it was a blip, none has been lost.
            return target
        if now - since >= delay_s - TOLERANCE_S:
            return new
        self._delay("downscale_delay", f"{_are(new)} enough", since, since + delay_s)
        return target

    def _keeps_all(self, down: int) -> bool:
        """Say whether none may be stopped just now, and why."""
        target = self.situation.target
        if self.panic_s is not None:
            self._wake(self.panic_s + self.config.look_back_period_s)
            self._limit(
                "panic", target, lambda: f"panic: none is stopped, though {down} would be enough"
            )
            return True
        if self.situation.silent:
            names = ", ".join(self.situation.silent[:3])
            self._limit("silence", target, lambda: f"{names} did not report: none is stopped")
            return True
        return False

    def _delay(self, name: str, what: str, since: Seconds, until: Seconds) -> None:
        """Nothing changes yet: look again when the delay ends."""
        now = self.now
        self._wake(until)
        self._limit(
            name,
            self.situation.target,
            lambda: f"{what}, for {now - since:.1f} s so far: in {until - now:.1f} s it is done",
        )

    def _remember(self, new: int) -> Memory:
        """What the next decision has to know; with a new target delays begin anew."""
        memory, now, target = self.memory, self.now, self.situation.target
        rise_s = self.window.rise_s
        if new == target:
            return Memory(
                rise_s,
                memory.answered_s,
                self.up_since_s,
                self.down_since_s,
                self.panic_s,
                memory.scaled_up_s,
                memory.scaled_down_s,
            )
        grows = new > target
        return Memory(
            rise_s=rise_s,
            answered_s=rise_s if grows else memory.answered_s,
            panic_s=self.panic_s,
            scaled_up_s=now if grows else memory.scaled_up_s,
            scaled_down_s=memory.scaled_down_s if grows else now,
        )

    # --------------------------------------------------------------------------------- outcome

    def _stay(self, target: int) -> Decision:
        """No number: the target stays, within its bounds."""
        assert self.asked is not None
        new = self._fit(target)
        name = "error" if self.asked.error else "no_answer"
        why = "the policy failed" if self.asked.error else "the policy said nothing"
        self._limit(name, new, lambda: f"{why}: the number stays")
        self.up_since_s = self.down_since_s = None
        return Decision(new, self._remember(new), self.look_at, self)

    def _limit(self, name: str, num: int, why: Callable[[], str]) -> None:
        self.limits.append((name, num, why))

    def _wake(self, at: Seconds) -> None:
        if self.look_at is None or at < self.look_at:
            self.look_at = at

    def _wake_while_window_changes(self) -> None:
        """An aggregate goes on changing for as long as its window holds a change."""
        config, changed_s = self.config, self.demand.total.changed_s
        self._wake_while_changing(config.look_back_period_s, changed_s)
        if config.panic_window_s is not None:
            self._wake_while_changing(config.panic_window_s, changed_s)

    def _wake_while_changing(self, window_s: Seconds, changed_s: Seconds) -> None:
        if changed_s > self.now - window_s:
            self._wake(self.now + max(_SHORTEST_LOOK_S, window_s / _LOOKS_PER_WINDOW))

    def record(self, new: int) -> ScalingRecord:
        """Write how the target came to be `new`."""
        config, window, situation = self.config, self.window, self.situation
        total, queued, length_s = window.growing, window.queued, window.length_s
        if new < situation.target:
            total, length_s = window.shrinking, config.look_back_period_s
            queued = min(queued, total)
        asked: float | None
        if self.asked is None:
            policy = "default"
            formula = explained(config, total, situation.running, situation.target)
            asked = wanted(config, total, situation.running, situation.target)
        else:
            policy, asked = self.asked.policy, self.asked.num
            formula = f"{policy} asked for {asked:g}" if asked is not None else ""
        return ScalingRecord(
            at_unix_s=self.now + situation.unix_offset_s,
            before=situation.target,
            after=new,
            running=situation.running,
            queued=queued,
            ongoing=max(0.0, total - queued),
            total=total,
            window_s=length_s,
            aggregation=config.aggregation_function,
            policy=policy,
            formula=formula,
            asked=asked,
            limits=tuple(Limit(name, num, why()) for name, num, why in self.limits),
            error=self.asked.error if self.asked is not None else "",
        )


def _are(num: int) -> str:
    return f"{num} is" if num == 1 else f"{num} are"
