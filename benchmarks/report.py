"""Turn outcomes into verdicts, a Markdown table and JSON. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.compare import by_local, by_ray_serve
from benchmarks.rows import Better, Goal, Row
from benchmarks.session import Outcome, Outcomes
from benchmarks.sides import LIMIT, ON_RAY, REMORA
from benchmarks.stats import Summary, paired_ratio, summarize

#: Two processes that answer each other run on one core or on two as the scheduler likes, which
#: changes a ping-pong from 0.07 to 0.02 ms; on a quiet machine it is steadily two. Above this
#: much other work the table says so.
BUSY_PERCENT = 10.0


@dataclass(frozen=True)
class Verdict:
    """One judged row.

    Attributes:
        row: the row.
        limit: the limit's figures, if it was measured.
        remora: Remora's figures, if they were measured.
        ratio: Remora by limit, over pairs of one round; None without both.
        met: whether the goal is met; None when that cannot be said.
        problem: why there is no figure.
    """

    row: Row
    limit: Summary | None
    remora: Summary | None
    ratio: float | None
    met: bool | None
    problem: str | None

    @property
    def word(self) -> str:
        """The verdict in one word."""
        if self.met is None:
            return "no result"
        return "met" if self.met else "missed"


def is_met(goal: Goal, better: Better, figure: float, ratio: float | None) -> bool | None:
    """Compare a figure with its goal; None when the goal is a ratio and there is none. Pure."""
    value = ratio if goal.relative else figure
    if value is None:
        return None
    return value >= goal.bound if better is Better.HIGHER else value <= goal.bound


def judge(row: Row, outcomes: Outcomes) -> Verdict:
    """Judge one row from what was measured. Pure."""
    limit, limit_error = _summary(outcomes.get((row.key, LIMIT)))
    remora, remora_error = _summary(outcomes.get((row.key, REMORA)))
    problem = remora_error or (f"limit: {limit_error}" if limit_error and row.limit else None)
    if remora is None:
        return Verdict(row, limit, None, None, None, problem)
    ratio = None if limit is None else paired_ratio(remora.samples, limit.samples)
    met = is_met(row.goal, row.better, remora.median, ratio)
    return Verdict(row, limit, remora, ratio, met, problem)


def _summary(outcome: Outcome | None) -> tuple[Summary | None, str | None]:
    if outcome is None:
        return None, "not measured"
    if outcome.error is not None or not outcome.samples:
        return None, outcome.error or "no sample"
    return summarize(outcome.samples), None


def format_figure(value: float, digits: int) -> str:
    """Format a figure with thousands separated. Pure."""
    return f"{value:,.{digits}f}"


def _cell(summary: Summary | None, digits: int) -> str:
    if summary is None:
        return "-"
    low, high = format_figure(summary.low, digits), format_figure(summary.high, digits)
    return f"{format_figure(summary.median, digits)} ({low} - {high})"


def format_goal(row: Row) -> str:
    """Write a goal as it stands in the design. Pure."""
    sign = "≥" if row.better is Better.HIGHER else "≤"
    if row.goal.relative:
        return f"{sign} {row.goal.bound:g} x limit"
    return f"{sign} {row.goal.bound:,g} {row.unit}"


def markdown(
    verdicts: Sequence[Verdict],
    outcomes: Outcomes,
    peers: Mapping[str, str],
    machine: Mapping[str, Any],
) -> str:
    """Return the table with what is needed to read it. Pure.

    Args:
        verdicts: of the measured rows.
        outcomes: where the figures of the peers are.
        peers: name → version, in column order.
        machine: the record of `machine.describe`.
    """
    head = ["work", "unit", "limit", "Remora", "goal", "ratio", "verdict"]
    more = _comparisons(verdicts, outcomes)
    head += [*more, *(f"{name} {version}" for name, version in peers.items())]
    lines = [_line(head), _line(["---"] * len(head))]
    for verdict in verdicts:
        row = verdict.row
        cells = [
            row.title,
            row.unit,
            _cell(verdict.limit, row.digits),
            _cell(verdict.remora, row.digits),
            format_goal(row),
            "-" if verdict.ratio is None else f"{verdict.ratio:.2f}",
            f"{verdict.word} ({row.note})" if row.note else verdict.word,
        ]
        cells += [column[row.key] for column in more.values()]
        cells += [_cell(_summary(outcomes.get((row.key, name)))[0], row.digits) for name in peers]
        lines.append(_line(cells))
    about = (
        f"Medians with (lowest - highest); the ratio is the median over the rounds. "
        f"{machine['cpu']}, {machine['cores']} cores, Python {machine['python']}, "
        f"{machine['date']}, commit {machine['commit']}."
    )
    if machine["busy_percent_before"] > BUSY_PERCENT:
        about += (
            f" Other work kept the processors {machine['busy_percent_before']:.0f} % busy before "
            "the run: repeat it on a quiet machine before believing the rows of latency."
        )
    problems = _problems(verdicts, outcomes, peers)
    return (
        "\n".join([*lines, "", about, *(["", "No result:", *problems] if problems else [])]) + "\n"
    )


def _comparisons(verdicts: Sequence[Verdict], outcomes: Outcomes) -> dict[str, dict[str, str]]:
    """Return the columns of what was compared: heading → key of the row → cell."""
    rows = [verdict.row for verdict in verdicts]
    sides = {key: _summary(outcomes.get((key, ON_RAY)))[0] for key in (row.key for row in rows)}
    found = {"Remora on Ray": {row.key: _cell(sides[row.key], row.digits) for row in rows}}
    for title, compare in (("on Ray / local", by_local), ("Remora / Ray Serve", by_ray_serve)):
        compared = {row.key: compare(row, outcomes) for row in rows}
        found[title] = {key: "-" if each is None else str(each) for key, each in compared.items()}
    return {title: cells for title, cells in found.items() if set(cells.values()) != {"-"}}


def _problems(
    verdicts: Sequence[Verdict], outcomes: Outcomes, peers: Mapping[str, str]
) -> list[str]:
    lines = [f"- {v.row.key}: {_one_line(v.problem)}" for v in verdicts if v.problem]
    for verdict in verdicts:
        for name in (ON_RAY, *peers):
            outcome = outcomes.get((verdict.row.key, name))
            if outcome is not None and outcome.error is not None:
                lines.append(f"- {verdict.row.key}, {name}: {_one_line(outcome.error)}")
    return lines


def _one_line(text: str, longest: int = 400) -> str:
    line = " ".join(text.split())
    if len(line) <= longest:
        return line
    # The start says what failed and the end why: tracebacks and logs have their cause there.
    return f"{line[: longest // 3]} … {line[-(2 * longest // 3) :]}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def as_json(
    verdicts: Sequence[Verdict],
    outcomes: Outcomes,
    peers: Mapping[str, str],
    machine: Mapping[str, Any],
) -> dict[str, Any]:
    """Return everything that was measured as plain data. Pure."""
    rows = {}
    for verdict in verdicts:
        row = verdict.row
        rows[row.key] = {
            "title": row.title,
            "unit": row.unit,
            "limit_is": row.limit,
            "goal": {"bound": row.goal.bound, "relative": row.goal.relative},
            "better": row.better.value,
            "note": row.note,
            "ratio": verdict.ratio,
            "verdict": verdict.word,
            "sides": {
                side: {
                    "median": summarize(found.samples).median if found.samples else None,
                    "samples": found.samples,
                    "error": found.error,
                }
                for side in (LIMIT, REMORA, ON_RAY, *peers)
                if (found := outcomes.get((row.key, side))) is not None
            },
        }
    return {"machine": dict(machine), "peers": dict(peers), "rows": rows}
