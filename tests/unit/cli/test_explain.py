from __future__ import annotations

import pytest

from remora.cli.errors import CommandError
from remora.cli.explain import lines, select
from remora.core.autoscale.record import Limit, ScalingRecord
from remora.wire.scaling import ScalingDetail


def record(before: int, after: int, *limits: Limit, at: float = 1_700_000_000.0) -> ScalingRecord:
    return ScalingRecord(
        at_unix_s=at,
        before=before,
        after=after,
        running=before,
        queued=2.5,
        ongoing=10.0,
        total=12.5,
        window_s=30.0,
        aggregation="mean",
        policy="default",
        formula="ceil(12.5 requests / 2 for each replica) = 7",
        asked=7,
        limits=limits,
    )


def detail(deployment: str = "Model", **fields: object) -> ScalingDetail:
    values: dict[str, object] = {
        "app_name": "default",
        "deployment": deployment,
        "by": "demand",
        "status": "STABLE",
        "target_num_replicas": 4,
        "running": 4,
        "low": 1,
        "high": 8,
        **fields,
    }
    return ScalingDetail(**values)  # type: ignore[arg-type]


def test_says_inputs_formula_each_step_and_the_result() -> None:
    waits = Limit("upscale_delay", 4, "7 are wanted, for 2.0 s so far: in 3.0 s it is done")
    text = "\n".join(
        lines(detail(latest=record(4, 4, waits), decisions=(record(1, 2), record(2, 4))))
    )
    assert text.startswith(
        "default/Model is scaled by demand: 4 of 4 replicas run, between 1 and 8. STABLE"
    )
    assert "12.5 requests: 10 ongoing and 2.5 waiting (mean over 30 s)" in text
    assert "formula   ceil(12.5 requests / 2 for each replica) = 7" in text
    assert "then      7 are wanted, for 2.0 s so far" in text
    assert "result    4" in text
    # The last decision first.
    assert text.index("2 -> 4") < text.index("1 -> 2")


def test_says_what_is_wrong() -> None:
    text = "\n".join(
        lines(detail(metrics_health="delayed", errors=("The policy failed.\nKeyError: 'x'",)))
    )
    assert "delayed: nothing is scaled down meanwhile" in text
    assert "Error: The policy failed.\nKeyError: 'x'" in text


def test_says_who_decides_where_demand_does_not() -> None:
    assert "by its options" in next(iter(lines(detail(by="options"))))
    assert "from outside" in next(iter(lines(detail(by="outside"))))


def test_shows_metrics_of_ones_own() -> None:
    text = "\n".join(lines(detail(latest=record(1, 1), metrics={"queued": 1.0, "depth[a]": 3.0})))
    assert "metric    depth[a] = 3" in text
    assert "queued =" not in text


def test_selects_an_application_or_a_deployment() -> None:
    all_of = [detail(), detail("Other"), detail(app_name="second")]
    assert select(all_of, None) == all_of
    assert select(all_of, "default") == all_of[:2]
    assert select(all_of, "default/Other") == [all_of[1]]
    with pytest.raises(CommandError, match=r"Did you mean 'default/Model'\?"):
        select(all_of, "default/Modle")
    with pytest.raises(CommandError, match="Nothing is deployed"):
        select([], None)
