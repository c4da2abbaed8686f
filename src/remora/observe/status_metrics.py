"""The status of applications, deployments and replicas as metrics. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from remora.observe.metrics import gauge
from remora.wire.control import ApplicationStatus
from remora.wire.metrics import Family

#: Numbers as Ray Serve's dashboards know them; 0: unknown.
_DEPLOYMENT = {
    "DEPLOY_FAILED": 1,
    "UNHEALTHY": 2,
    "UPDATING": 3,
    "UPSCALING": 4,
    "DOWNSCALING": 5,
    "HEALTHY": 6,
}
_APPLICATION = {
    "DEPLOY_FAILED": 1,
    "UNHEALTHY": 2,
    "NOT_STARTED": 3,
    "DELETING": 4,
    "DEPLOYING": 5,
    "RUNNING": 6,
}


def status_families(applications: Mapping[str, ApplicationStatus]) -> list[Family]:
    """What the controller knows, under the names of Ray Serve."""
    deployments = [
        (app.name, deployment)
        for app in applications.values()
        for deployment in app.deployments.values()
    ]
    return [
        gauge(
            "serve_application_status",
            ("application",),
            {(app.name,): _APPLICATION.get(app.status, 0) for app in applications.values()},
        ),
        gauge(
            "serve_deployment_status",
            ("application", "deployment"),
            {(app, each.name): _DEPLOYMENT.get(each.status, 0) for app, each in deployments},
        ),
        gauge(
            "serve_deployment_replica_healthy",
            ("application", "deployment", "replica"),
            {
                (app, each.name, replica.replica_id): int(replica.state == "RUNNING")
                for app, each in deployments
                for replica in each.replicas
            },
        ),
    ]
