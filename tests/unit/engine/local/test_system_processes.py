"""The processes that are always there."""

from __future__ import annotations

from remora.engine.boot import InstanceOptions
from remora.engine.doors import default_num_proxies
from remora.engine.local.processes import HEALTHY_AFTER_S, Process, ProcessTable
from remora.engine.local.system_processes import (
    PermanentProcess,
    PermanentProcesses,
    is_proxy,
    system_requests,
)


def names(http: dict[str, object], http_url: str = "http://127.0.0.1:8000") -> list[str]:
    options = InstanceOptions("/x", http, "c:c", "p:p", 1.0)
    return [request["id"] for request in system_requests(options, http_url=http_url)]


def test_the_controller_comes_first_then_as_many_proxies_as_asked_for() -> None:
    assert names({"num_proxies": 2}) == ["controller", "proxy-1", "proxy-2"]


def test_nobody_needs_to_choose_how_many_proxies_there_are() -> None:
    assert names({"num_proxies": None}) == names({}) == ["controller", "proxy-1"]
    chosen = {cores: default_num_proxies(cores) for cores in (1, 2, 4, 8, 16, 128)}
    assert chosen == {1: 1, 2: 1, 4: 1, 8: 2, 16: 4, 128: 4}


def test_without_a_front_door_there_is_no_proxy() -> None:
    assert names({"num_proxies": 2}, http_url="") == ["controller"]


def test_a_replica_of_an_application_called_proxy_is_no_proxy() -> None:
    assert is_proxy("proxy-1")
    assert not is_proxy("proxy-app/deployment#1")
    assert not is_proxy("controller")


def test_restarts_are_counted_and_delayed_while_crashes_follow_each_other() -> None:
    kept = PermanentProcess({"id": "controller"})
    crashed = Process({"id": "controller"}, system=True, up_since=100.0)
    assert [kept.ended(crashed, 101.0) for _ in range(3)] == [0.0, 0.1, 0.2]
    assert (kept.restarts, kept.restart_at) == (3, 101.2)
    assert kept.ended(crashed, 110.0) == 0.0


def test_what_is_told_of_crashes_is_over_once_it_has_stayed() -> None:
    kept, table = PermanentProcesses(), ProcessTable()
    kept.add({"id": "controller"})
    crashed = Process({"id": "controller"}, system=True, up_since=100.0)
    for _ in range(3):
        kept.ended(crashed, 101.0)
    assert [each["crashes"] for each in kept.told(table, 102.0)] == [3]
    table.add({"id": "controller"}, system=True)
    table.get("controller").up_since = 102.0  # type: ignore[union-attr]
    assert [each["crashes"] for each in kept.told(table, 103.0)] == [3]
    assert [each["crashes"] for each in kept.told(table, 102.0 + HEALTHY_AFTER_S)] == [0]
