"""How a plan is told."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from remora.cli.main import main
from remora.cli.plan import lines
from remora.core.saved_state import app_key
from remora.engine.local.store import Store
from remora.wire.plan import ApplicationPlan, DeploymentPlan, Plan


def test_says_what_changes_and_what_it_takes() -> None:
    plan = Plan(
        (
            ApplicationPlan(
                name="a",
                action="update",
                route_before="/a",
                route_after=None,
                deployments=(
                    DeploymentPlan(
                        name="F",
                        steps=("roll", "scale"),
                        changed=("code", "num_replicas"),
                        before=2,
                        after=4,
                        peak=5,
                        replica_bytes=100 * 2**20,
                    ),
                    DeploymentPlan(
                        name="G",
                        steps=("reconfigure",),
                        changed=("user_config",),
                        before=1,
                        after=1,
                        peak=1,
                    ),
                    DeploymentPlan(name="H", before=1, after=1, peak=1),
                ),
            ),
            ApplicationPlan(
                name="b",
                action="create",
                route_after="/b",
                deployments=(DeploymentPlan(name="F", steps=("create",), after=2, peak=2),),
            ),
            ApplicationPlan(
                name="c",
                action="delete",
                route_before="/c",
                deployments=(DeploymentPlan(name="F", steps=("delete",), before=3, peak=3),),
            ),
        )
    )
    assert lines(plan) == [
        "Application 'a' changes.",
        "  route: /a -> none",
        (
            "  F: roll: new replicas take the place of 2, and 4 run after it (code, num_replicas); "
            "1 more at the peak"
        ),
        "  G: reconfigure in place (user_config)",
        "  H: no change, 1 replicas",
        "Application 'b' is new.",
        "  route: none -> /b",
        "  F: start 2",
        "Application 'c' is deleted.",
        "  route: /c -> none",
        "  F: stop 3",
        (
            "At the peak: 5 more replicas than now, about 300 MiB and what 2 replicas take that "
            "never ran here."
        ),
    ]


def test_says_when_nothing_would_change() -> None:
    same = DeploymentPlan(name="F", before=2, after=2, peak=2)
    plan = Plan((ApplicationPlan(name="a", action="none", deployments=(same,)),))
    assert lines(plan)[-1] == "Nothing would change."


def planned(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    """Plan an application where no instance runs: exit status, output, errors."""
    file = folder / "serve.yaml"
    file.write_text("applications: [{name: a, import_path: 'no:app'}]")
    monkeypatch.setenv("REMORA_HOME", str(folder))
    monkeypatch.setattr(sys, "argv", ["remora", "plan", "--json", str(file)])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    return int(ended.value.code or 0), said.out, said.err


def test_where_nothing_runs_all_of_it_would_be_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = planned(tmp_path, monkeypatch, capsys)
    assert status == 0
    assert f"No instance runs in {tmp_path}: all of this would be new" in err
    (app,) = json.loads(out)["applications"]
    assert (app["name"], app["action"], app["route_after"]) == ("a", "create", "/")
    assert not (tmp_path / "state.db").exists()


def test_where_nothing_runs_what_the_next_start_brings_back_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path / "state.db")
    store.put(app_key("before"), b"whatever")
    store.put(f"bound/{app_key('of-a-program')}", b"whatever")
    store.close()
    status, out, err = planned(tmp_path, monkeypatch, capsys)
    assert (status, out) == (1, "")
    assert "brings back what the last one served (before): start it" in err
