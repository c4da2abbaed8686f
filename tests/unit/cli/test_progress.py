from __future__ import annotations

import sys

import msgspec
import pytest

from remora.cli.progress import LiveProgress, PlainProgress, news, progress, summary
from remora.wire.control import ApplicationStatus, DeploymentStatus


def deployment(
    name: str = "Model",
    status: str = "UPDATING",
    message: str = "",
    running: int = 0,
    target: int = 2,
) -> DeploymentStatus:
    return DeploymentStatus(
        name=name,
        status=status,
        status_trigger="CONFIG_UPDATE_STARTED",
        message=message,
        target_num_replicas=target,
        replica_states={"RUNNING": running, "STARTING": target - running},
    )


def application(
    *deployments: DeploymentStatus, status: str = "DEPLOYING", message: str = ""
) -> ApplicationStatus:
    return ApplicationStatus(
        name="default",
        status=status,
        message=message,
        route_prefix="/",
        last_deployed_time_s=0.0,
        deployments={d.name: d for d in deployments},
    )


@pytest.mark.parametrize(
    ("status", "text"),
    [
        ("UPDATING", "starting, 1/2 replicas running"),
        ("HEALTHY", "1/2 replicas running"),
        ("DEPLOY_FAILED", "deploy failed, 1/2 replicas running"),
    ],
)
def test_summary_says_how_many_run(status: str, text: str) -> None:
    assert summary(deployment(status=status, running=1)) == text


def test_first_news_is_every_deployment() -> None:
    now = application(deployment("A"), deployment("B"))
    assert [line.partition(":")[0] for line in news(None, now)] == ["A", "B"]


def test_news_is_only_what_changed() -> None:
    before = application(deployment("A"), deployment("B"))
    now = application(deployment("A"), deployment("B", running=1))
    assert news(before, now) == ["B: starting, 1/2 replicas running"]
    assert news(now, now) == []


def test_news_is_also_why_it_waits() -> None:
    count = "0 of 2 replicas are up and running."
    before = application(deployment("A", message=count))
    now = application(deployment("A", message=f"{count} 2 replica(s) find no place: no GPU."))
    assert news(before, now) == ["A: 2 replica(s) find no place: no GPU."]
    assert news(now, now) == []


def test_how_many_wait_is_told_with_every_count() -> None:
    waiting = msgspec.structs.replace(deployment(running=1, target=3), num_waiting=1)
    assert summary(waiting) == "starting, 1/3 replicas running, 1 waiting for room"


def test_what_leaves_is_not_said_to_start() -> None:
    leaving = msgspec.structs.replace(
        deployment(running=1, message="The deployment is being deleted."),
        status_trigger="DELETING",
    )
    assert summary(leaving) == "leaving, 1 replicas left"
    assert news(None, application(leaving)) == ["Model: leaving, 1 replicas left"]


def test_lines_of_one_application_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    plain = PlainProgress(named=False)
    for each in (deployment("A"), deployment("A"), deployment("A", "HEALTHY", running=2)):
        plain.show({"app": application(each)})
    plain.close()
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "A: starting, 0/2 replicas running\nA: 2/2 replicas running\n"


def test_lines_redraw_only_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    assert isinstance(progress(), PlainProgress)


def test_a_live_picture_draws_each_deployment(capsys: pytest.CaptureFixture[str]) -> None:
    live = LiveProgress(named=False)
    try:
        those = (
            deployment("A", "HEALTHY", running=2),
            deployment("B"),
            deployment("C", "UNHEALTHY"),
        )
        live.show({"app": application(*those)})
    finally:
        live.close()
    err = capsys.readouterr().err
    assert "2/2 replicas running" in err
    assert "unhealthy" in err
