"""docs/states.md says what the table of replica states says."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

from remora.core.replica_state import TRANSITIONS, ReplicaState

ROOT = Path(__file__).parents[2]


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("states_script", ROOT / "scripts" / "states.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_states_is_up_to_date() -> None:
    written = (ROOT / "docs" / "states.md").read_text(encoding="utf-8")
    assert written == load_script().page(), "run: python scripts/states.py"


def test_the_page_names_every_state_and_every_edge() -> None:
    page = load_script().page()
    assert all(f"| {state} |" in page for state in ReplicaState)
    rows = [line for line in page.splitlines() if line.count("|") == 5 and "From" not in line]
    assert len(rows) == len(TRANSITIONS) + 1  # and the line below the heading


def test_every_edge_has_a_reason() -> None:
    reasons = load_script().reasons()
    assert set(reasons) == set(TRANSITIONS)
    assert all(len(reason) > 10 for reason in reasons.values())
