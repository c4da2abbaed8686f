"""Handles by name."""

from __future__ import annotations

import pickle
from functools import partial

import pytest

import remora
import remora.exceptions
from remora.calls import lookup
from remora.errors import DeployError, NotDeployedError
from remora.handle import DeploymentHandle
from remora.schema import ServeStatus
from remora.wire.control import ApplicationStatus, DeploymentStatus, InstanceStatus


def test_without_a_check_a_handle_needs_nothing_and_is_kept() -> None:
    first = remora.get_deployment_handle("D", "a", _check_exists=False)
    assert isinstance(first, DeploymentHandle)
    assert remora.get_deployment_handle("D", "a", _check_exists=False) is first


def test_keeps_at_most_so_many_handles(caplog: pytest.LogCaptureFixture) -> None:
    for number in range(lookup.MAX_CACHED_HANDLES + 5):
        remora.get_deployment_handle(f"D{number}", "a", _check_exists=False)
    assert len(lookup._handles) == lookup.MAX_CACHED_HANDLES
    assert "dropped" in caplog.text
    lookup._handles.clear()


def test_a_kept_handle_is_looked_for_again_once_its_deployment_is_not_known_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known = True
    monkeypatch.setattr("remora.router.process.knows_deployment", lambda _: known)
    monkeypatch.setattr(lookup, "require_instance", lambda: None)
    monkeypatch.setattr(lookup, "wait_for", lambda *_: ServeStatus())
    lookup._handles.clear()
    kept = remora.get_deployment_handle("D", "a", _check_exists=False)
    assert remora.get_deployment_handle("D", "a") is kept
    known = False
    with pytest.raises(KeyError, match="Application 'a' is not deployed"):
        remora.get_deployment_handle("D", "a")
    lookup._handles.clear()


def application(status: str = "RUNNING", message: str = "", *deployments: str) -> ApplicationStatus:
    return ApplicationStatus(
        name="shop",
        status=status,
        message=message,
        route_prefix="/",
        last_deployed_time_s=0.0,
        deployments={
            name: DeploymentStatus(
                name=name,
                status="HEALTHY",
                status_trigger="",
                message="",
                target_num_replicas=1,
                replica_states={},
                replicas=(),
            )
            for name in deployments
        },
    )


@pytest.mark.parametrize(
    ("app", "asked", "kind", "told"),
    [
        (application(), ("shpo", ""), NotDeployedError, "Did you mean 'shop'? Deployed: shop."),
        (application(), ("shpo", "D"), NotDeployedError, "Did you mean 'shop'? Deployed: shop."),
        (
            application("RUNNING", "", "Front", "Model"),
            ("shop", "Modle"),
            NotDeployedError,
            "has no deployment 'Modle'. Did you mean 'Model'? It has: Front, Model.",
        ),
        (application("DELETING", "", "D"), ("shop", "D"), NotDeployedError, "is being deleted"),
        (
            application("DEPLOY_FAILED", "ImportError: no m"),
            ("shop", "D"),
            DeployError,
            "its deploy failed. Mend the cause and deploy again.\nshop: ImportError: no m",
        ),
    ],
)
def test_what_no_handle_leads_to_is_told_alike_with_the_names_that_there_are(
    monkeypatch: pytest.MonkeyPatch,
    app: ApplicationStatus,
    asked: tuple[str, str],
    kind: type[Exception],
    told: str,
) -> None:
    report = InstanceStatus(
        home="",
        http_url="",
        controller_pid=1,
        supervisor_pid=1,
        proxies=(),
        applications={"shop": app},
    )
    monkeypatch.setattr(lookup, "require_instance", lambda: None)
    monkeypatch.setattr(lookup, "wait_for", lambda *_: report)
    monkeypatch.setattr(lookup, "_known_ingress", lambda _: None)
    name, deployment = asked
    ask = partial(remora.get_deployment_handle, deployment) if deployment else remora.get_app_handle
    with pytest.raises(kind) as caught:
        ask(name)
    assert told in str(caught.value)
    again = pickle.loads(pickle.dumps(caught.value))
    assert str(again) == str(caught.value)
    assert isinstance(again, remora.exceptions.RayServeException)


def test_deleting_an_application_drops_its_kept_handles_alone() -> None:
    gone = remora.get_deployment_handle("D", "a", _check_exists=False)
    other = remora.get_deployment_handle("D", "b", _check_exists=False)
    lookup.forget_handles_of("a")
    assert remora.get_deployment_handle("D", "a", _check_exists=False) is not gone
    assert remora.get_deployment_handle("D", "b", _check_exists=False) is other
    lookup._handles.clear()
