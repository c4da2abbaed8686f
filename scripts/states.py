"""Write docs/states.md from the table of replica states.

    python scripts/states.py            write it
    python scripts/states.py --check    say whether it is up to date

The comment above each edge in `core/replica_state.py` is the reason that the page gives.
"""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path

from remora.core import replica_state
from remora.core.replica_state import (
    LIVE,
    MEANING,
    ROUTABLE,
    STAYING,
    TERMINAL,
    TRANSITIONS,
    Cause,
    ReplicaState,
)

PAGE = Path(__file__).parents[1] / "docs" / "states.md"

_EDGE = re.compile(
    r"(?P<comment>(?:^ {4}# .*\n)+)^ {4}\(_(?P<before>[A-Z]+), Cause\.(?P<cause>[A-Z_]+)\)", re.M
)


def reasons() -> dict[tuple[ReplicaState, Cause], str]:
    """Read the comment of every edge.

    Raises:
        ValueError: an edge has no comment of its own.
    """
    found = {}
    for match in _EDGE.finditer(inspect.getsource(replica_state)):
        edge = ReplicaState[match["before"]], Cause[match["cause"]]
        lines = match["comment"].splitlines()
        found[edge] = " ".join(line.strip().removeprefix("# ") for line in lines)
    missing = [f"{state} on {cause.name}" for state, cause in TRANSITIONS.keys() - found.keys()]
    if missing:
        raise ValueError(f"these edges have no comment in replica_state.py: {sorted(missing)}")
    return found


def page() -> str:
    """Make the page. Pure but for reading the source."""
    lines = [
        "# The life of a replica",
        "",
        "<!-- Made by scripts/states.py from src/remora/core/replica_state.py; change it there. -->",
        "",
        "A replica is one process with one copy of your code. It is always in one of six states.",
        "",
        "```text",
        "PENDING ──▶ STARTING ──▶ RUNNING ──▶ DRAINING ──▶ STOPPING ──▶ STOPPED",
        "any state ──▶ STOPPED when its process goes",
        "```",
        "",
        "| State | Meaning |",
        "|---|---|",
        *(f"| {state} | {text} |" for state, text in MEANING.items()),
        "",
        "| Group | States |",
        "|---|---|",
        f"| routable: requests go there | {_names(ROUTABLE)} |",
        f"| staying: counts towards `num_replicas` | {_names(STAYING)} |",
        f"| live: holds its resources | {_names(LIVE)} |",
        f"| terminal: nothing follows | {_names(TERMINAL)} |",
        "",
        "## What leads from one state to the next",
        "",
        "| From | When | To | Why |",
        "|---|---|---|---|",
    ]
    why = reasons()
    lines += [
        f"| {before} | {cause.value} | {after} | {why[before, cause]} |"
        for (before, cause), after in TRANSITIONS.items()
    ]
    return "\n".join(lines) + "\n"


def _names(states: frozenset[ReplicaState]) -> str:
    return ", ".join(str(state) for state in ReplicaState if state in states)


def main() -> int:
    """Write the page, or compare it."""
    wanted = page()
    if "--check" in sys.argv:
        if PAGE.read_text(encoding="utf-8") == wanted:
            return 0
        print(f"{PAGE} is out of date: run `python scripts/states.py`")
        return 1
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
