"""What the public functions refuse before anything is started."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

import remora
from remora.deployment import deployment
from remora.errors import ConfigError, InstanceError, NotSupportedYetError, RayServeException
from remora.schema import ServeStatus


class Plain:
    def __call__(self) -> int:
        return 1


Model = deployment(name="Model")(Plain)


@pytest.fixture(autouse=True)
def _no_instance(remora_home: Path) -> None:
    """A state folder in which nothing runs; no test here may start anything."""


def test_run_needs_an_application() -> None:
    with pytest.raises(TypeError, match="bind"):
        remora.run(cast(Any, Model))
    with pytest.raises(TypeError):
        remora.run(cast(Any, 3))


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"name": ""}, RayServeException),
        ({"route_prefix": "x"}, ValueError),
        ({"logging_config": {"log_level": "LOUD"}}, ValueError),
        ({"controller_options": {"runtime_env": {}}}, NotSupportedYetError),
    ],
)
def test_run_refuses_before_it_starts_anything(
    options: dict[str, Any], error: type[Exception], remora_home: Path
) -> None:
    with pytest.raises(error):
        remora.run(Model.bind(), **options)
    assert list(remora_home.iterdir()) == []


def test_run_many_needs_targets_of_different_names() -> None:
    with pytest.raises(ValueError, match="No applications provided"):
        remora.run_many([])
    with pytest.raises(ConfigError, match="name"):
        remora.run_many([remora.RunTarget(Model.bind()), remora.RunTarget(Model.bind())])


@pytest.mark.parametrize("old", ["http_host", "http_port", "http_middlewares", "detached"])
def test_start_says_what_replaced_old_options(old: str) -> None:
    with pytest.raises(ValueError, match="http_options"):
        remora.start(**cast(Any, {old: 1}))


def test_start_names_the_nearest_option() -> None:
    with pytest.raises(TypeError, match="Did you mean 'http_options'"):
        remora.start(**cast(Any, {"http_option": {}}))
    with pytest.raises(ValueError, match="proxy_location"):
        remora.start(proxy_location="Nowhere")
    with pytest.raises(ConfigError, match="Did you mean 'enable_reflection'"):
        remora.start(grpc_options={"enable_reflexion": True})


def test_grpc_needs_proxies() -> None:
    with pytest.raises(ConfigError, match="which proxies serve"):
        remora.start(grpc_options={"port": 0}, proxy_location="Disabled")


def test_without_an_instance_there_is_nothing_to_see_or_end(remora_home: Path) -> None:
    assert remora.status() == ServeStatus()
    remora.shutdown()
    assert list(remora_home.iterdir()) == []


async def test_shutdown_async_does_the_same() -> None:
    await remora.shutdown_async()


def test_without_an_instance_the_rest_says_how_to_get_one() -> None:
    for call in (remora.delete, remora.get_app_handle):
        with pytest.raises(InstanceError, match=r"remora\.run"):
            call("a")
    with pytest.raises(RayServeException, match="app_name"):
        remora.get_deployment_handle("D")
    with pytest.raises(RayServeException):
        remora.get_deployment_handle("D", "a")
