"""Which deployments of an application call which: a graph that Ray Serve's tools read.

Rules: pure.
"""

from __future__ import annotations

import msgspec

from remora.wire.control import ApplicationStatus


class Outbound(msgspec.Struct, frozen=True):
    """A deployment that is called."""

    name: str
    app_name: str


class TopologyNode(msgspec.Struct, frozen=True):
    """A deployment that calls others, or none."""

    name: str
    app_name: str
    outbound_deployments: tuple[Outbound, ...]
    is_ingress: bool


class DeploymentTopology(msgspec.Struct, frozen=True):
    """The deployments of an application and what they call, also of other applications."""

    app_name: str
    nodes: dict[str, TopologyNode]
    ingress_deployment: str | None


def topology(app: ApplicationStatus) -> DeploymentTopology:
    """Describe who calls whom. Pure."""
    return DeploymentTopology(
        app_name=app.name,
        ingress_deployment=app.ingress or None,
        nodes={
            name: TopologyNode(
                name=name,
                app_name=app.name,
                outbound_deployments=tuple(
                    Outbound(each.name, each.app_name) for each in deployment.calls
                ),
                is_ingress=name == app.ingress,
            )
            for name, deployment in app.deployments.items()
        },
    )
