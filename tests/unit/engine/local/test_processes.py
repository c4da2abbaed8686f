"""The table of processes: every process ends in exactly one `Gone`, whatever is reported when."""

from __future__ import annotations

import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from remora.engine.local.processes import (
    HEALTHY_AFTER_S,
    Fork,
    Gone,
    Kill,
    Order,
    Process,
    ProcessTable,
    Stage,
    Terminate,
    Up,
    crashes_in_row,
    exit_reason,
    restart_delay_s,
)
from remora.engine.local.protocol import Message


def request(name: str = "a") -> Message:
    return {"op": "fork", "id": name, "entrypoint": "m:f", "title": name}


def started(table: ProcessTable, name: str = "a", pid: int = 7) -> Process:
    (order,) = table.add(request(name))
    assert isinstance(order, Fork)
    table.asked(order.process, 1)
    table.forked(name, pid)
    table.up(name, pid, "unix:/a", 0.0)
    return order.process


def test_a_start_that_is_asked_twice_is_one_start() -> None:
    table = ProcessTable()
    process = started(table)
    assert table.add(request()) == [Up(process)]
    assert len(table) == 1


def test_a_stop_terminates_once_and_kills_at_the_deadline() -> None:
    table = ProcessTable()
    process = started(table)
    assert table.stop("a", 5.0, 100.0) == [Terminate(7)]
    assert table.stop("a", 9.0, 101.0) == []
    assert table.next_deadline() == 105.0
    assert table.overdue(104.9) == []
    assert table.overdue(105.0) == [Kill(7)]
    assert table.exited(7, signal.SIGKILL) == [Gone(process, "killed by SIGKILL")]


def test_a_stop_before_the_fork_ends_without_a_process() -> None:
    table = ProcessTable()
    (order,) = table.add(request())
    assert isinstance(order, Fork)
    (gone,) = table.stop("a", 5.0, 0.0)
    assert isinstance(gone, Gone)
    assert gone.expected


def test_a_stop_between_order_and_fork_terminates_the_fork() -> None:
    table = ProcessTable()
    (order,) = table.add(request())
    assert isinstance(order, Fork)
    table.asked(order.process, 1)
    assert table.stop("a", 5.0, 0.0) == []
    assert table.forked("a", 7) == [Terminate(7)]


@pytest.mark.parametrize("at_once", [False, True])
def test_a_stop_of_what_waits_for_a_template_that_loads_is_its_end(at_once: bool) -> None:
    table = ProcessTable()
    (order,) = table.add({**request(), "shared": {"names": ["m:load"]}})
    assert isinstance(order, Fork)
    table.asked(order.process, -1)
    orders = table.kill("a", 0.0) if at_once else table.stop("a", 5.0, 0.0)
    assert orders == [Gone(order.process, "stopped before it was started")]
    # Nobody waits for it, should it be forked after all.
    assert table.forked("a", 7) == [Kill(7)]
    assert table.up("a", 7, "unix:/a", 0.0) == [Kill(7)]
    assert table.exited(7, 9) == []


def test_a_report_of_its_coming_up_can_overtake_that_of_its_fork() -> None:
    table = ProcessTable()
    (order,) = table.add(request())
    assert isinstance(order, Fork)
    table.asked(order.process, 1)
    assert table.up("a", 7, "unix:/a", 0.0) == [Up(order.process)]
    assert table.forked("a", 7) == []


def test_a_failure_without_a_process_is_an_unexpected_end_with_its_reason() -> None:
    table = ProcessTable()
    table.add(request())
    (gone,) = table.failed("a", 0, "cannot fork: no memory")
    assert isinstance(gone, Gone)
    assert gone.reason == "could not start: cannot fork: no memory"
    assert not gone.expected


def test_a_failure_of_a_process_is_told_with_its_exit() -> None:
    table = ProcessTable()
    (order,) = table.add(request())
    assert isinstance(order, Fork)
    table.asked(order.process, 1)
    assert table.failed("a", 7, "no module") == []
    assert table.exited(7, 70 << 8) == [Gone(order.process, "could not start: no module")]


def test_only_what_the_lost_template_was_told_is_asked_again() -> None:
    table = ProcessTable()
    orders = [*table.add(request("old")), *table.add(request("new"))]
    for generation, order in enumerate(orders, 1):
        assert isinstance(order, Fork)
        table.asked(order.process, generation)
    assert [o.process.process_id for o in table.lost(1) if isinstance(o, Fork)] == ["old"]


def test_a_fork_that_nobody_waits_for_is_killed() -> None:
    assert ProcessTable().forked("unknown", 9) == [Kill(9)]


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (0, "exit status 0"),
        (3 << 8, "exit status 3"),
        (signal.SIGKILL, "killed by SIGKILL"),
        (signal.SIGSEGV | 0x80, "killed by SIGSEGV (core dumped)"),
        (60, "killed by signal 60"),
    ],
)
def test_the_reason_of_an_exit_is_readable(status: int, reason: str) -> None:
    assert exit_reason(status) == reason


@given(st.integers(min_value=1, max_value=10_000))
def test_restarts_back_off_up_to_two_seconds(crashes: int) -> None:
    assert 0.0 <= restart_delay_s(crashes) <= restart_delay_s(crashes + 1) <= 2.0


def test_the_first_restart_is_at_once_and_the_second_is_not() -> None:
    assert [restart_delay_s(n) for n in (1, 2, 3, 4)] == [0.0, 0.1, 0.2, 0.4]


def test_a_healthy_time_ends_a_row_of_crashes() -> None:
    assert crashes_in_row(4, 0.0, HEALTHY_AFTER_S) == 1
    assert crashes_in_row(4, 0.0, HEALTHY_AFTER_S - 0.1) == 5
    assert crashes_in_row(4, None, 1000.0) == 5


class TableMachine(RuleBasedStateMachine):
    """Reports in every order that can happen, and some that cannot."""

    names = st.sampled_from("abc")

    def __init__(self) -> None:
        super().__init__()
        self.table = ProcessTable()
        self.now = 0.0
        self.generation = 1
        self.next_pid = 100
        self.living: dict[int, str] = {}
        self.open: set[str] = set()

    def take(self, orders: list[Order]) -> None:
        for order in orders:
            if isinstance(order, Fork):
                self.open.add(order.process.process_id)
                self.table.asked(order.process, self.generation)
            elif isinstance(order, Gone):
                # Exactly one end, and only of what is open.
                self.open.remove(order.process.process_id)

    @rule(name=names)
    def add(self, name: str) -> None:
        shared = {"shared": {"names": ["m:load"]}} if name == "c" else {}
        self.take(self.table.add({**request(name), **shared}))

    @rule(name=names)
    def fork(self, name: str) -> None:
        self.next_pid += 1
        orders = self.table.forked(name, self.next_pid)
        process = self.table.get(name)
        if process is not None and process.pid == self.next_pid:
            self.living[self.next_pid] = name
        self.take(orders)

    @rule(name=names)
    def up(self, name: str) -> None:
        for pid, owner in self.living.items():
            if owner == name:
                self.take(self.table.up(name, pid, "unix:/x", self.now))

    @rule(name=names)
    def refuse(self, name: str) -> None:
        process = self.table.get(name)
        if process is not None and not process.pid:
            self.take(self.table.failed(name, 0, "no memory"))

    @rule(data=st.data())
    def exit(self, data: st.DataObject) -> None:
        if self.living:
            pid = data.draw(st.sampled_from(sorted(self.living)))
            del self.living[pid]
            self.take(self.table.exited(pid, 0))

    @rule(name=names, timeout_s=st.floats(min_value=0, max_value=5))
    def stop(self, name: str, timeout_s: float) -> None:
        self.take(self.table.stop(name, timeout_s, self.now))

    @rule(name=names)
    def kill(self, name: str) -> None:
        self.take(self.table.kill(name, self.now))

    @rule()
    def lose_template(self) -> None:
        self.generation += 1
        self.take(self.table.lost(self.generation - 1))

    @rule(seconds=st.floats(min_value=0, max_value=3))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.take(self.table.overdue(self.now))

    @invariant()
    def knows_exactly_what_is_open(self) -> None:
        assert {process.process_id for process in self.table.all()} == self.open

    @invariant()
    def knows_exactly_who_lives(self) -> None:
        assert self.table.sessions() == set(self.living)

    @invariant()
    def who_is_up_has_a_pid(self) -> None:
        assert all(p.pid for p in self.table.all() if p.stage in (Stage.FORKED, Stage.UP))


TestTable = pytest.mark.slow(TableMachine.TestCase)
