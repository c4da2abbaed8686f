"""When a batch that is not full should start: now, or once more items are there.

Waiting is worth it only for items that are likely to come soon. Items that come independently of
each other are not: while the model works on one batch the next one gathers by itself. But callers
who wait for an answer before they ask again come back together, right after a batch has answered
them; a batch that starts with the first of them makes all others wait for a whole run.

So this module learns, for each batch that answered, how many callers came back and how soon. A
batch waits for those still expected while the time they would save (a run of the model each) is
more than the time lost by those who wait (the rest of the period in which callers come back, and
their work on the items that join them). Only what a run takes in any case can be saved, so that is
told apart from what each item adds: where items take all the time, nobody is waited for. Of
more callers than there is room for, those who find none need another batch in any case, so the
saving counts by the share that finds room.
What is learned does not depend on what was decided, so nothing has to be tried out: without
evidence nobody waits.

Rules: pure; time is an argument.

Source: mean and deviation of a delay are followed as TCP follows its round-trip time (V. Jacobson,
"Congestion Avoidance and Control", SIGCOMM 1988).
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from remora.types import Seconds

#: Weight of the newest observation.
_GAIN = 0.125
#: Deviations above the mean after which a caller is no longer expected.
_DEVIATIONS = 4.0
#: Of the sizes of batches, below which they say nothing of what an item costs.
_MIN_VARIANCE = 0.1
#: Answered batches whose callers are still awaited; more than that means they are far apart.
_MAX_GENERATIONS = 64


class Outlook(NamedTuple):
    """What is likely to happen soon.

    Attributes:
        expected: items that are likely to come.
        until: when they should be there.
        run_s: how long a batch takes, apart from its items.
        item_s: how much longer it takes for each of them.
    """

    expected: float
    until: Seconds
    run_s: Seconds
    item_s: Seconds = 0.0

    def limited(self, limit: int, num_inside: int) -> Outlook:
        """The same where at most `limit` items may be inside, and `num_inside` are."""
        return self._replace(expected=min(self.expected, max(0, limit - num_inside)))


#: Nothing is known.
NOTHING = Outlook(0.0, float("-inf"), 0.0)


def start_at(
    num_waiting: int, room: float, latest: Seconds, outlook: Outlook, now: Seconds
) -> Seconds:
    """Say when a batch should start if nothing more comes; `now` or earlier means at once. Pure.

    Args:
        num_waiting: items that wait, >= 1.
        room: how many more fit.
        latest: when it starts at the latest.
        outlook: what is likely to come.
        now: the present.
    """
    more = min(outlook.expected, room)
    patience_s = outlook.until - now
    if more <= 0.0 or patience_s <= 0.0:
        return now
    saved_s = more * outlook.run_s * (more / outlook.expected)
    if saved_s <= num_waiting * (patience_s + more * outlook.item_s):
        return now
    return min(latest, outlook.until)


class _Runs:
    """Follows how long batches take: all of them, and longer for each item that they have.

    A straight line through what was seen, the newest counting most. Batches of one size say
    nothing of their items: then what was known before holds.
    """

    __slots__ = ("_covariance", "_item_s", "_mean_num", "_mean_s", "_variance")

    def __init__(self) -> None:
        self._mean_num = 1.0
        self._mean_s: Seconds | None = None
        self._variance = 0.0
        self._covariance = 0.0
        self._item_s: Seconds = 0.0

    def learn(self, num: int, run_s: Seconds) -> None:
        if self._mean_s is None:
            self._mean_num, self._mean_s = num, run_s
            return
        more, longer_s = num - self._mean_num, run_s - self._mean_s
        self._mean_num += _GAIN * more
        self._mean_s += _GAIN * longer_s
        self._variance += _GAIN * ((1 - _GAIN) * more * more - self._variance)
        self._covariance += _GAIN * ((1 - _GAIN) * more * longer_s - self._covariance)
        if self._variance >= _MIN_VARIANCE:
            self._item_s = max(0.0, self._covariance / self._variance)

    def times(self) -> tuple[Seconds, Seconds]:
        """How long a batch takes apart from its items, and for each of them."""
        mean_s = self._mean_s or 0.0
        item_s = min(self._item_s, mean_s / self._mean_num)
        return mean_s - item_s * self._mean_num, item_s


class Returns:
    """Follows how many callers come back after a batch has answered them, and how soon.

    Args:
        window_s: callers who take longer than this have not come back for our purposes.

    Invariants: `0 <= share <= 1`; as many arrivals are counted as returns as there were answers.
    """

    __slots__ = ("_deviation_s", "_generations", "_mean_s", "_runs", "share", "window_s")

    def __init__(self, window_s: Seconds) -> None:
        self.window_s = window_s
        self.share = 0.0
        self._mean_s = 0.0
        self._deviation_s = 0.0
        self._runs = _Runs()
        # [when they were answered, how many were, how many of them have not come back: >= 1].
        self._generations: deque[list[float]] = deque()

    def on_arrival(self, now: Seconds) -> None:
        """An item has come: it counts as the return of the caller answered longest ago."""
        self._forget_old(now)
        if self._generations:
            oldest = self._generations[0]
            oldest[2] -= 1
            self._learn_delay(now - oldest[0])
            if oldest[2] == 0:
                self._settle(self._generations.popleft())

    def on_answered(self, num: int, run_s: Seconds, now: Seconds) -> None:
        """A batch has ended: `num` callers have their answers after `run_s`."""
        self._forget_old(now)
        if num > 0:
            self._runs.learn(num, run_s)
            if len(self._generations) == _MAX_GENERATIONS:
                self._settle(self._generations.popleft())
            self._generations.append([now, num, num])

    def outlook(self, now: Seconds) -> Outlook:
        """What is likely to come."""
        self._forget_old(now)
        patience_s = min(self.window_s, self._mean_s + _DEVIATIONS * self._deviation_s)
        expected, until = 0.0, now
        for answered_at, _, missing in self._generations:
            if answered_at + patience_s > now:
                expected += missing * self.share
                until = answered_at + patience_s
        return Outlook(expected, until, *self._runs.times())

    def _learn_delay(self, delay_s: Seconds) -> None:
        error_s = delay_s - self._mean_s
        self._mean_s += _GAIN * error_s
        self._deviation_s += _GAIN * (abs(error_s) - self._deviation_s)

    def _forget_old(self, now: Seconds) -> None:
        while self._generations and self._generations[0][0] + self.window_s <= now:
            self._settle(self._generations.popleft())

    def _settle(self, generation: list[float]) -> None:
        _, answered, missing = generation
        came = (answered - missing) / answered
        self.share += _GAIN * (came - self.share)
