"""The order in which an instance ends."""

from __future__ import annotations

from remora.engine.boot import InstanceOptions
from remora.engine.local.processes import Fork, Gone, Kill, Order, ProcessTable, Terminate
from remora.engine.local.shutdown_order import ShutdownOrder
from remora.engine.local.system_processes import system_requests

CONTROLLER, PROXY, REPLICA = 1, 2, 3


def table() -> ProcessTable:
    made = ProcessTable()
    options = InstanceOptions("/x", {}, "c:c", "p:p", 1.0)
    requests = system_requests(options, http_url="http://x")
    replica = {"op": "fork", "id": "proxy-app/d#1"}
    for pid, request in enumerate([*requests, replica], 1):
        (order,) = made.add(request, system=request is not replica)
        assert isinstance(order, Fork)
        made.asked(order.process, 1)
        made.forked(request["id"], pid)
    return made


def terminated(orders: list[Order]) -> list[int]:
    return [order.pid for order in orders if isinstance(order, Terminate)]


def test_proxies_end_first_then_replicas_then_the_controller() -> None:
    processes, ending = table(), ShutdownOrder(kill_at=5.0, at_once=False)
    for pid in (PROXY, REPLICA, CONTROLLER):
        assert terminated(ending.step(processes, 1.0)) == [pid]
        assert ending.step(processes, 1.0) == []
        processes.exited(pid, 0)
    assert ending.done(processes)


def test_without_an_owner_all_are_told_at_once() -> None:
    ending = ShutdownOrder(kill_at=1.0, at_once=True)
    assert sorted(terminated(ending.step(table(), 0.0))) == [CONTROLLER, PROXY, REPLICA]


def test_the_deadline_is_for_all_whose_turn_has_not_come_too() -> None:
    processes, ending = table(), ShutdownOrder(kill_at=5.0, at_once=False)
    ending.step(processes, 1.0)
    ending.step(processes, 5.0)
    killed = [order.pid for order in processes.overdue(5.0) if isinstance(order, Kill)]
    assert sorted(killed) == [CONTROLLER, PROXY, REPLICA]


def test_what_was_never_forked_does_not_hold_up_the_end() -> None:
    processes, ending = ProcessTable(), ShutdownOrder(kill_at=5.0, at_once=False)
    (order,) = processes.add({"op": "fork", "id": "a"})
    assert isinstance(order, Fork)
    processes.asked(order.process, 1)
    ending.step(processes, 0.0)
    assert not ending.done(processes)
    assert any(isinstance(order, Gone) for order in ending.step(processes, 5.0))
    assert ending.done(processes)


def test_being_asked_again_keeps_the_earlier_deadline() -> None:
    ending = ShutdownOrder(kill_at=5.0, at_once=False)
    ending.hurry(9.0, at_once=False)
    assert (ending.kill_at, ending.at_once) == (5.0, False)
    ending.hurry(1.0, at_once=True)
    assert (ending.kill_at, ending.at_once) == (1.0, True)
