"""What is told of a deployment that no snapshot names."""

from __future__ import annotations

from remora.core.snapshot import AppRoute, DeploymentRoute, Snapshot
from remora.router.unknown import why_unknown
from remora.types import DeploymentID

SNAPSHOT = Snapshot(
    apps={"shop": AppRoute("shop", "/", "Front"), "more": AppRoute("more", "/more", "D")},
    deployments={
        DeploymentID(name, app): DeploymentRoute(replicas=(), max_ongoing_requests=1)
        for name, app in (("Front", "shop"), ("Model", "shop"), ("D", "more"))
    },
    leaving={"/old": "old"},
)


def test_it_names_what_there_is_and_the_nearest_of_it() -> None:
    assert why_unknown(DeploymentID("Modle", "shop"), SNAPSHOT) == (
        "application 'shop' has no deployment 'Modle'. Did you mean 'Model'? It has: Front, Model"
    )
    assert why_unknown(DeploymentID("Model", "shpo"), SNAPSHOT) == (
        "no application 'shpo' is deployed. Did you mean 'shop'? Deployed: more, shop"
    )
    assert why_unknown(DeploymentID("D", "old"), SNAPSHOT) == "application 'old' is being deleted"
    assert why_unknown(DeploymentID("D", "x"), Snapshot()).endswith("Deployed: none")


def test_of_many_names_some_are_listed() -> None:
    many = Snapshot(apps={f"app{n:02}": AppRoute(f"app{n:02}", None, "D") for n in range(50)})
    assert why_unknown(DeploymentID("D", "x"), many).endswith("app19 and 30 more")
