"""When a deployment may start replicas again after failures, and when it gives up.

Rules: pure. Waiting and giving up belong to the deployment: a replica never comes back, another
one takes its place.
"""

from __future__ import annotations

from remora.types import Seconds

#: The first retry is all but immediate: most failures of a first deploy are typing errors, and
#: their author waits in front of the screen.
FIRST_DELAY_S = 0.1
#: Kubernetes stops at 300 s; a model server that could be back is missed sooner.
MAX_DELAY_S = 30.0
#: Attempts per target replica, whatever `max_constructor_retry_count` says (EV-08).
MAX_ATTEMPTS_PER_REPLICA = 3
#: Crashes that are this old say nothing about the next one.
CRASH_WINDOW_S = 60.0
#: Crashes inside the window that are answered at once: one bad request should cost nothing.
FREE_CRASHES = 2
#: A process that has ended so often in a row, soon after each start, is in trouble.
MANY_CRASHES = 3
#: Crashes that are remembered at most.
KEPT_CRASHES = 20
#: A new version is trusted when all of its replicas have run for so long. One that dies of its
#: first requests dies before that.
STABLE_S = 10.0
#: Or when they first ran together so long ago: where replicas come and go with demand, some may
#: always be young.
TRUSTED_S = 60.0


def max_attempts(max_constructor_retry_count: int, target: int) -> int:
    """Failed starts in a row after which a deploy that never worked has failed. Pure."""
    return max(1, min(max_constructor_retry_count, MAX_ATTEMPTS_PER_REPLICA * target))


def in_a_row(failures: int) -> str:
    """Say how often, for people. Pure."""
    return "once" if failures == 1 else f"{failures} times in a row"


def delay_s(failures: int) -> Seconds:
    """How long to wait after so many failures in a row.

    Pure. Invariants: 0 for none; never shrinks as failures grow; at most `MAX_DELAY_S`.
    """
    if failures <= 0:
        return 0.0
    # The exponent is bounded because 2.0**1024 overflows.
    return float(min(FIRST_DELAY_S * 2.0 ** min(failures - 1, 30), MAX_DELAY_S))


def gives_up(
    failures: int, limit: int, *, worked_before: bool, can_fall_back: bool, some_run: bool
) -> bool:
    """Say whether to start no more until somebody deploys again.

    Args:
        failures: failed starts in a row, or replicas lost during the roll-out.
        limit: what `max_attempts` says.
        worked_before: this target was complete once: whatever is wrong now may pass.
        can_fall_back: there is a version before that worked, and this one is not trusted yet.
        some_run: a replica of this target runs, so its code can start.

    Pure.
    """
    return failures >= limit and (can_fall_back or not (worked_before or some_run))


def after_crash(
    crashes_s: tuple[Seconds, ...], now: Seconds
) -> tuple[tuple[Seconds, ...], Seconds]:
    """Answer the crash of a running replica, at `now`.

    Returns:
        The crashes still worth remembering, this one included, and when to start the next.

    Pure.
    """
    recent = (*within_window(crashes_s, now), now)[-KEPT_CRASHES:]
    return recent, now + delay_s(len(recent) - FREE_CRASHES)


def within_window(crashes_s: tuple[Seconds, ...], now: Seconds) -> tuple[Seconds, ...]:
    """Leave out the crashes that say nothing any more. Pure."""
    return tuple(at for at in crashes_s if now - at < CRASH_WINDOW_S)


def are_many(num_recent: int, target: int) -> bool:
    """Say whether so many crashes inside the window mean that replicas come and do not stay.

    Pure. Invariants: what is answered at once is not many; nor is one of each replica, up to half
    of what is remembered.
    """
    return num_recent > max(FREE_CRASHES, min(target, KEPT_CRASHES // 2))
