"""The command line of the harness."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import compare, machine, peers, report
from benchmarks.http_load import require_wrk
from benchmarks.processes import TargetError
from benchmarks.rows import Row, Sampling, select_rows
from benchmarks.session import FULL, QUICK, Outcome, Outcomes, Session
from benchmarks.sides import LIMIT_SIDE, RAY_SIDE, REMORA_SIDE
from benchmarks.targets import ROOT

_RESULTS = Path(__file__).parent / "results"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer, shorter rounds (2 minutes)")
    parser.add_argument("--rows", metavar="KEYS", help="only these, for example http,handle")
    parser.add_argument("--list", action="store_true", help="show the rows and end")
    parser.add_argument(
        "--peers",
        nargs="*",
        default=[],
        metavar="NAME",
        help=f"compare with some of {' '.join(peers.PEERS)}",
    )
    parser.add_argument(
        "--on-ray", action="store_true", help="measure Remora on its Ray engine too, in turns"
    )
    parser.add_argument("--limits-only", action="store_true", help="do not measure Remora")
    parser.add_argument(
        "--require-goals", action="store_true", help="exit with 2 when a goal is missed"
    )
    parser.add_argument(
        "--output", type=Path, default=_RESULTS, help="folder for latest.json and latest.md"
    )
    return parser


def list_rows(rows: Sequence[Row]) -> str:
    """Return one line for each row. Pure."""
    return "\n".join(
        f"{row.key:<12} {row.title}: {report.format_goal(row)}"
        + (f" (limit: {row.limit})" if row.limit else "")
        for row in rows
    )


def _measure_peers(
    chosen: Sequence[peers.Peer], rows: Sequence[Row], session: Session
) -> dict[str, str]:
    """Install and measure the peers one after the other; return their versions."""
    versions = {}
    for peer in chosen:
        _say(f"{peer.name}: preparing its environment")
        try:
            side = peers.side_of(peer, peers.install(peer))
        except TargetError as error:
            versions[peer.name] = "(not installed)"
            _say(f"{peer.name} is left out: {error}")
            for row in rows:
                session.outcomes[row.key, peer.name] = Outcome(error=f"not installed: {error}")
            continue
        versions[peer.name] = peers.version_of(peer)
        session.measure(rows, [side])
    return versions


def _write(folder: Path, table: str, data: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "latest.json").write_text(json.dumps(data, indent=2) + "\n")
    (folder / "latest.md").write_text(table)


def exit_status(verdicts: Sequence[report.Verdict], *, require_goals: bool) -> int:
    """Return 1 when a row has no result, 2 when a required goal is missed, else 0. Pure."""
    if any(verdict.met is None for verdict in verdicts):
        return 1
    # Rows with a note (later, information) have a goal that does not count yet.
    missed = [v for v in verdicts if not v.row.note and not v.met]
    return 2 if require_goals and missed else 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmarks and return the exit status."""
    parser = _parser()
    flags = parser.parse_args(argv)
    try:
        rows = select_rows(flags.rows)
        chosen = peers.parse_peers(" ".join(flags.peers))
        if any(row.sampling is Sampling.HTTP_RATE for row in rows) and not flags.list:
            require_wrk()
    except (ValueError, TargetError) as error:
        parser.error(str(error))
    if flags.list:
        print(list_rows(rows))
        return 0
    # End like after Ctrl-C, so that the servers are stopped and their folders removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    begin = time.monotonic()
    record = machine.describe(ROOT)
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as scratch:
        session = Session(QUICK if flags.quick else FULL, Path(scratch), _say)
        ours = [] if flags.limits_only else [REMORA_SIDE, *([RAY_SIDE] if flags.on_ray else [])]
        session.measure(rows, [LIMIT_SIDE, *ours])
        versions = _measure_peers(chosen, rows, session)
    record |= {"effort": "quick" if flags.quick else "full", "took_s": time.monotonic() - begin}
    outcomes: Outcomes = session.outcomes
    verdicts = [report.judge(row, outcomes) for row in rows]
    table = report.markdown(verdicts, outcomes, versions, record)
    _write(flags.output, table, report.as_json(verdicts, outcomes, versions, record))
    print(table)
    _say(f"measured for {record['took_s']:.0f} s; written to {flags.output}")
    if flags.limits_only:
        return 0
    if flags.require_goals and not compare.are_met(rows, outcomes):
        return 2
    return exit_status(verdicts, require_goals=flags.require_goals)
