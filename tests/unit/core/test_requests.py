from __future__ import annotations

import pytest

from remora.config import DeploymentConfig
from remora.core import events as ev
from remora.core.requests import check
from remora.core.state import Application, ControllerState
from remora.errors import ConfigError, InstanceError, RouteTakenError


def app(
    name: str = "a",
    prefix: str | None = "/",
    ingress: str = "d",
    deployments: tuple[str, ...] = ("d",),
) -> ev.ApplicationRequest:
    return ev.ApplicationRequest(
        name=name,
        route_prefix=prefix,
        ingress=ingress,
        deployments=tuple(
            ev.DeploymentRequest(
                name=each, code_key="k", code_version="1", config=DeploymentConfig()
            )
            for each in deployments
        ),
    )


def deploy(*apps: ev.ApplicationRequest) -> ev.DeployRequested:
    return ev.DeployRequested(applications=apps)


def with_app(*, deleting: bool = False) -> ControllerState:
    there = Application(
        name="old",
        route_prefix="/",
        ingress="d",
        revision=1,
        last_deployed_unix_s=0.0,
        deleting=deleting,
    )
    return ControllerState(applications={"old": there})


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (deploy(app(name="")), "an application needs a name"),
        (deploy(app(), app(prefix="/b")), "may occur once in a deploy"),
        (deploy(app(ingress="x")), "ingress='x'"),
        (deploy(app(deployments=("d", "d"))), "may occur once in a"),
        (deploy(app(ingress="d#1", deployments=("d#1",))), "without '#'"),
        (deploy(app(prefix="x")), "begins with '/'"),
        (deploy(app(prefix="/x/")), "does not end with one"),
        (deploy(app(prefix="/{x}")), "wildcards"),
    ],
)
def test_what_cannot_be_right_is_refused(request_: ev.DeployRequested, message: str) -> None:
    error = check(ControllerState(), request_)
    assert isinstance(error, ConfigError)
    assert message in str(error)


def test_a_route_prefix_has_one_owner() -> None:
    assert isinstance(check(with_app(), deploy(app())), RouteTakenError)
    both = deploy(app("a", "/x"), app("b", "/x"))
    assert isinstance(check(ControllerState(), both), RouteTakenError)


def test_a_prefix_is_free_for_its_owner_after_a_deletion_and_without_http() -> None:
    assert check(with_app(), deploy(app("old"))) is None
    assert check(with_app(deleting=True), deploy(app())) is None
    assert check(with_app(), deploy(app(prefix=None))) is None
    # Two applications may swap.
    assert check(with_app(), deploy(app("old", "/new"), app("a", "/"))) is None


def test_an_instance_that_ends_takes_no_deploys_but_deletions() -> None:
    ending = ControllerState(shutting_down=True)
    assert isinstance(check(ending, deploy(app())), InstanceError)
    assert check(ending, ev.DeleteRequested(names=("a",))) is None
    assert check(ending, ev.ShutdownRequested()) is None
