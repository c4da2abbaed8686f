"""Remora on Ray beside the embedded engine, and beside both modes of Ray Serve."""

from __future__ import annotations

import pytest
from tests.unit.benchmarks.test_report import MACHINE, one, outcomes

from benchmarks.compare import are_met, by_local, by_ray_serve
from benchmarks.report import judge, markdown
from benchmarks.session import Outcome, Outcomes


def found(key: str, **sides: list[float] | str) -> Outcomes:
    return outcomes(key, **{name.replace("_", "-"): each for name, each in sides.items()})


@pytest.mark.parametrize(
    ("key", "local", "ray", "shown"),
    (
        ("http", [100.0, 200.0], [90.0, 180.0], "0.90 (met)"),
        ("http", [100.0, 200.0], [89.0, 170.0], "0.87 (missed)"),
        # Of a time, less is better.
        ("handle", [0.1], [0.05], "2.00 (met)"),
        ("handle", [0.1], [0.2], "0.50 (missed)"),
        # Starts are Ray's own for the most part.
        ("start", [0.5], [5.0], "0.10"),
    ),
)
def test_each_round_on_ray_is_compared_with_the_same_on_the_embedded_engine(
    key: str, local: list[float], ray: list[float], shown: str
) -> None:
    assert str(by_local(one(key), found(key, remora=local, remora_ray=ray))) == shown


@pytest.mark.parametrize("ray", ("it broke", []))
def test_what_was_not_measured_is_not_compared(ray: list[float] | str) -> None:
    sides = found("http", remora=[1.0], remora_ray=ray, ray=[1.0])
    assert by_local(one("http"), sides) is None
    assert by_ray_serve(one("http"), sides) is None
    assert are_met([one("http")], sides)


def test_a_difference_that_may_be_nothing_is_not_compared() -> None:
    sides = found("sse_gap", remora=[0.5, -0.1], remora_ray=[-0.2, 0.4])
    assert by_local(one("sse_gap"), sides) is None


def test_the_better_mode_of_ray_serve_counts() -> None:
    rate = found("http", remora_ray=[1000.0], ray=[10.0], ray_throughput=[250.0])
    assert str(by_ray_serve(one("http"), rate)) == "4.00 (missed)"
    assert not are_met([one("http")], rate)
    time = found("handle", remora_ray=[0.1], ray=[3.0], ray_throughput="no HAProxy")
    assert str(by_ray_serve(one("handle"), time)) == "30.00 (met)"


def test_only_small_requests_have_a_goal_beside_ray_serve() -> None:
    rate = found("array1", remora=[1000.0], ray=[900.0])
    assert str(by_ray_serve(one("array1"), rate)) == "1.11"
    assert are_met([one("array1")], rate)


def test_the_table_has_the_columns_that_were_measured() -> None:
    sides = found("http", limit=[2.0], remora=[100.0], remora_ray=[100.0])
    table = markdown([judge(one("http"), sides)], sides, {}, MACHINE)
    assert "| Remora on Ray | on Ray / local |\n" in table
    assert table.splitlines()[2].endswith("| 100 (100 - 100) | 1.00 (met) |")
    broken = sides | {("http", "remora-ray"): Outcome(error="no Ray")}
    table = markdown([judge(one("http"), broken)], broken, {}, MACHINE)
    assert "on Ray" not in table.splitlines()[0]
    assert "- http, remora-ray: no Ray" in table
