"""What is told of a status: each thing once."""

from __future__ import annotations

from remora.core.status_text import failure_text, failure_texts
from remora.wire.control import ApplicationStatus, DeploymentStatus


def failed(message: str, app_message: str = "", name: str = "a") -> ApplicationStatus:
    deployment = DeploymentStatus(
        name="D",
        status="DEPLOY_FAILED",
        status_trigger="REPLICA_STARTUP_FAILED",
        message=message,
        target_num_replicas=1,
        replica_states={},
    )
    return ApplicationStatus(
        name=name,
        status="DEPLOY_FAILED",
        message=app_message,
        route_prefix="/",
        last_deployed_time_s=0.0,
        deployments={"D": deployment},
    )


def test_a_failure_shows_the_traceback_once() -> None:
    trace = "Traceback …\nValueError: no model"
    for app in (failed(trace), failed(trace, f"Deployment D: {trace}")):
        assert failure_text(app).count("ValueError: no model") == 1


def test_a_failure_tells_the_applications_own_reason_too() -> None:
    assert failure_text(failed("no memory", "gave up")).splitlines() == [
        "a: gave up",
        "a/D: no memory",
    ]


def test_a_failure_without_a_reason_points_to_the_logs() -> None:
    assert "logs" in failure_text(failed(""))


def test_what_several_failed_of_together_is_told_once() -> None:
    apps = [failed("", "no room", "a"), failed("", "no room", "b"), failed("no model", name="c")]
    assert failure_texts(apps) == ["a, b: no room", "c/D: no model"]
