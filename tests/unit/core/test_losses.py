"""What the log says of replicas that died."""

from __future__ import annotations

from tests.unit.core.test_reconcile import Driver

from remora.core import actions as act
from remora.core import events as ev
from remora.core.health import MAX_FAILURES
from remora.core.reconcile import step
from remora.types import ReplicaID


def feed(driver: Driver, *events: ev.AnyEvent, after_s: float = 0.0) -> tuple[str, ...]:
    """Feed events and give the warnings of that step."""
    driver.now += after_s
    decided = step(driver.state, events, driver.now)
    driver.state, driver.actions = decided.state, decided.actions
    return decided.warnings


def die(driver: Driver, replica_id: str, reason: str = "killed by SIGKILL") -> tuple[str, ...]:
    return feed(driver, ev.ProcessExited(replica_id=ReplicaID(replica_id), reason=reason))


def alive(driver: Driver) -> str:
    return next(iter(driver.states))


def test_a_crash_is_told_once_with_its_successor() -> None:
    driver = Driver()
    driver.deploy()
    lost = alive(driver)
    driver.come_up(lost)
    assert die(driver, lost) == (
        f"Replica {lost} died: killed by SIGKILL. Another one is started.",
    )
    assert die(driver, lost) == ()
    assert feed(driver, after_s=1.0) == ()


def test_crash_after_crash_says_how_long_it_waits() -> None:
    driver = Driver()
    driver.deploy()
    told: tuple[str, ...] = ()
    lost = ""
    for _ in range(3):
        lost = alive(driver)
        driver.come_up(lost)
        told = die(driver, lost, "exit status 3")
    assert told == (
        f"Replica {lost} died: exit status 3. Backing off: another one is started in 0.1 s.",
    )


def test_the_last_failed_start_says_that_it_is_given_up() -> None:
    driver = Driver()
    driver.deploy(max_constructor_retry_count=1)
    lost = alive(driver)
    driver.come_up(lost, ready=False)
    text = "could not start: the constructor failed.\nTraceback:\n  file\nValueError: no model"
    failed = ev.ReplicaStartFailed(replica_id=ReplicaID(lost), traceback=text)
    assert feed(driver, failed) == (
        (
            f"Replica {lost}: could not start: the constructor failed. "
            "No other one is started: it failed once. Mend it and deploy again."
        ),
    )
    # Its process ends, as it was told: that is no second death.
    assert die(driver, lost, "exit status 0") == ()


def test_failed_health_checks_are_told() -> None:
    driver = Driver()
    driver.deploy(health_check_period_s=1.0)
    lost = alive(driver)
    driver.come_up(lost)
    told: list[str] = []
    for _ in range(MAX_FAILURES):
        told += feed(driver, after_s=1.5)
        assert any(isinstance(action, act.CheckHealth) for action in driver.actions)
        told += feed(driver, ev.HealthChecked(replica_id=ReplicaID(lost), error="out of memory"))
    assert told == [
        f"Replica {lost}: 3 health checks in a row failed: out of memory. Another one is started."
    ]


def test_who_is_told_to_leave_is_no_loss_unless_it_dies_of_it() -> None:
    driver = Driver()
    driver.deploy()
    lost = alive(driver)
    driver.come_up(lost)
    assert feed(driver, ev.DeleteRequested(names=("a",))) == ()
    assert die(driver, lost) == (
        f"Replica {lost} died: killed by SIGKILL. It was leaving: none takes its place.",
    )


def test_an_end_that_was_expected_is_no_news() -> None:
    driver = Driver()
    driver.deploy()
    gone = alive(driver)
    driver.come_up(gone)
    ended = ev.ProcessExited(replica_id=ReplicaID(gone), reason="exit status 0", expected=True)
    assert feed(driver, ended) == ()
