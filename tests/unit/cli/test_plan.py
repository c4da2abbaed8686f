"""How a plan is told."""

from __future__ import annotations

from remora.cli.plan import lines
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
