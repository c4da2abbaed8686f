"""The controller's report under the names that Ray Serve's users know."""

from __future__ import annotations

from remora.schema import ApplicationStatus, DeploymentStatus, ProxyStatus, serve_status
from remora.wire.control import ApplicationStatus as WireApplication
from remora.wire.control import DeploymentStatus as WireDeployment
from remora.wire.control import InstanceStatus, ProcessView


def report(app_status: str = "RUNNING") -> InstanceStatus:
    deployment = WireDeployment(
        name="D",
        status="HEALTHY",
        status_trigger="CONFIG_UPDATE_COMPLETED",
        message="m",
        target_num_replicas=2,
        replica_states={"RUNNING": 2},
    )
    app = WireApplication(
        name="a",
        status=app_status,
        message="",
        route_prefix="/",
        last_deployed_time_s=3.0,
        deployments={"D": deployment},
    )
    return InstanceStatus(
        home="/h",
        http_url="",
        controller_pid=1,
        supervisor_pid=2,
        proxies=(ProcessView(name="proxy-1", pid=3, status="HEALTHY"),),
        applications={"a": app},
    )


def test_keeps_everything_under_the_known_names() -> None:
    status = serve_status(report())
    assert status.proxies == {"proxy-1": ProxyStatus.HEALTHY}
    app = status.applications["a"]
    assert app.status is ApplicationStatus.RUNNING
    assert app.last_deployed_time_s == 3.0
    deployment = app.deployments["D"]
    assert deployment.status is DeploymentStatus.HEALTHY
    assert deployment.replica_states == {"RUNNING": 2}
    assert (deployment.status_trigger, deployment.message) == ("CONFIG_UPDATE_COMPLETED", "m")


def test_a_word_of_a_newer_controller_is_kept() -> None:
    assert serve_status(report("PONDERING")).applications["a"].status == "PONDERING"
