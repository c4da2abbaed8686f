"""Verdicts, the table and the JSON."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from benchmarks.cli import exit_status, list_rows
from benchmarks.peers import parse_peers
from benchmarks.report import as_json, format_goal, is_met, judge, markdown
from benchmarks.rows import ROWS, Better, Goal, Row, select_rows
from benchmarks.session import Outcome, Outcomes

MACHINE: dict[str, Any] = {
    "cpu": "Some CPU",
    "cores": 2,
    "python": "3.11.7",
    "date": "2026-11-23 12:00 UTC",
    "commit": "abc1234",
    "busy_percent_before": 1.0,
}


def one(key: str) -> Row:
    (row,) = select_rows(key)
    return row


def outcomes(key: str, **sides: list[float] | str) -> Outcomes:
    return {
        (key, side): Outcome(error=found) if isinstance(found, str) else Outcome(found)
        for side, found in sides.items()
    }


@pytest.mark.parametrize(
    ("goal", "better", "figure", "ratio", "met"),
    (
        (Goal(0.5, relative=True), Better.HIGHER, 9.0, 0.5, True),
        (Goal(0.5, relative=True), Better.HIGHER, 9.0, 0.49, False),
        (Goal(1.7, relative=True), Better.LOWER, 9.0, 1.7, True),
        (Goal(1.7, relative=True), Better.LOWER, 9.0, 1.71, False),
        (Goal(100, relative=False), Better.HIGHER, 99.0, 5.0, False),
        (Goal(100, relative=False), Better.LOWER, 99.0, None, True),
        (Goal(0.5, relative=True), Better.HIGHER, 9.0, None, None),
    ),
)
def test_goal(goal: Goal, better: Better, figure: float, ratio: float | None, met: bool) -> None:
    assert is_met(goal, better, figure, ratio) is met


def test_relative_row_is_judged_by_its_paired_ratio() -> None:
    verdict = judge(one("http"), outcomes("http", limit=[100, 200], remora=[60, 120]))
    assert (verdict.ratio, verdict.word, verdict.problem) == (0.6, "met", None)


def test_absolute_row_needs_no_limit() -> None:
    verdict = judge(one("handle32"), outcomes("handle32", remora=[24_000, 24_500, 30_000]))
    assert (verdict.ratio, verdict.word) == (None, "missed")


def test_row_that_failed_says_why_and_is_never_met() -> None:
    verdict = judge(one("http"), outcomes("http", limit=[100], remora="exited with status 3"))
    assert (verdict.met, verdict.word) == (None, "no result")
    assert verdict.problem == "exited with status 3"


def test_relative_row_without_its_limit_has_no_result() -> None:
    verdict = judge(one("http"), outcomes("http", limit="no uvicorn", remora=[100]))
    assert verdict.word == "no result"
    assert verdict.problem == "limit: no uvicorn"


def test_samples_before_a_failure_are_no_result() -> None:
    found: Outcomes = {("handle32", "remora"): Outcome([90_000], error="lost 3 requests")}
    assert judge(one("handle32"), found).word == "no result"


def test_table_shows_figures_goal_and_peers() -> None:
    found = outcomes(
        "http", limit=[50_000, 60_000, 70_000], remora=[30_000, 30_000, 35_000], mosec=[11_711]
    )
    table = markdown([judge(one("http"), found)], found, {"mosec": "0.9.8"}, MACHINE)
    line = next(line for line in table.splitlines() if line.startswith("| HTTP, 32"))
    assert [cell.strip() for cell in line.strip("|").split("|")] == [
        "HTTP, 32 connections",
        "req/s",
        "60,000 (50,000 - 70,000)",
        "30,000 (30,000 - 35,000)",
        "≥ 0.5 x limit",
        "0.50",
        "met",
        "11,711 (11,711 - 11,711)",
    ]
    assert "No result" not in table


def test_table_warns_of_a_busy_machine() -> None:
    found = outcomes("http", limit=[1.0], remora=[1.0])
    verdicts = [judge(one("http"), found)]
    assert "quiet machine" not in markdown(verdicts, found, {}, MACHINE)
    assert "55 % busy" in markdown(verdicts, found, {}, MACHINE | {"busy_percent_before": 55.0})


def test_table_names_what_failed_in_one_line() -> None:
    found = outcomes("http", limit=[1.0], remora="exited:\n  Traceback\n | x", mosec="pip failed")
    table = markdown([judge(one("http"), found)], found, {"mosec": "(not installed)"}, MACHINE)
    assert "- http: exited: Traceback | x\n" in table
    assert "- http, mosec: pip failed\n" in table


def test_table_keeps_the_end_of_a_long_failure() -> None:
    found = outcomes("http", limit=[1.0], remora="`remora` exited " + "x" * 1000 + " port taken")
    table = markdown([judge(one("http"), found)], found, {}, MACHINE)
    line = next(line for line in table.splitlines() if line.startswith("- http"))
    assert line.startswith("- http: `remora` exited")
    assert line.endswith("port taken")
    assert len(line) < 420


def test_json_keeps_every_sample_and_error() -> None:
    found = outcomes("http", limit=[2.0, 4.0, 9.0], remora=[1.0, 2.0, 3.0], ray="no ray")
    data = json.loads(
        json.dumps(as_json([judge(one("http"), found)], found, {"ray": "?"}, MACHINE))
    )
    row = data["rows"]["http"]
    assert row["ratio"] == 0.5
    assert row["sides"]["limit"] == {"median": 4.0, "samples": [2.0, 4.0, 9.0], "error": None}
    assert row["sides"]["ray"] == {"median": None, "samples": [], "error": "no ray"}


@pytest.mark.parametrize(
    ("figure", "require_goals", "status"),
    ((30_000, True, 0), (1, True, 2), (1, False, 0), (None, False, 1)),
)
def test_exit_status(figure: float | None, require_goals: bool, status: int) -> None:
    found = outcomes("handle32", remora="gone" if figure is None else [figure])
    verdict = judge(one("handle32"), found)
    assert exit_status([verdict], require_goals=require_goals) == status


def test_goal_of_a_later_release_does_not_fail_the_run() -> None:
    found = outcomes("array1", remora=[1.0], limit=[2.0])
    row = dataclasses.replace(one("array1"), note="later")
    assert exit_status([judge(row, found)], require_goals=True) == 0


def test_rows_are_selected_in_table_order() -> None:
    assert [row.key for row in select_rows("handle, http")] == ["http", "handle"]
    assert select_rows(None) == ROWS
    with pytest.raises(ValueError, match="unknown rows htpp"):
        select_rows("htpp")


def test_keys_of_rows_are_unique_and_relative_goals_have_a_limit() -> None:
    assert len({row.key for row in ROWS}) == len(ROWS)
    assert all(row.limit for row in ROWS if row.goal.relative)


def test_peers_are_separated_by_spaces_or_commas() -> None:
    assert [peer.name for peer in parse_peers("mosec,ray  mosec")] == ["mosec", "ray"]
    assert parse_peers("") == []
    with pytest.raises(ValueError, match="unknown peers rya"):
        parse_peers("rya")


def test_goals_read_as_in_the_design() -> None:
    assert format_goal(one("handle32")) == "≥ 25,000 calls/s"
    assert format_goal(one("start_hello")) == "≤ 0.6 s"
    assert len(list_rows(ROWS).splitlines()) == len(ROWS)
