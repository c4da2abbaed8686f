"""From `deployment_actors` to deployments of their own."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

import remora as serve
from remora.build.graph import build
from remora.config import DeploymentActorConfig
from remora.errors import CodeNotPicklableError, ConfigError
from remora.experimental.capacity_queue_router import CapacityQueue
from remora.wire.control import ApplicationSpec


class Plain:
    def call(self) -> None:
        pass


class Async(Plain):
    async def wait(self) -> None:
        pass


@serve.deployment
def owner() -> None:
    pass


def built(*actors: Any, version: str = "1", **options: Any) -> ApplicationSpec:
    bound = owner.options(deployment_actors=list(actors), **options).bind()
    return build(bound, code_version=version)


def actor(cls: Any = Plain, name: str = "a", **given: Any) -> DeploymentActorConfig:
    return DeploymentActorConfig(name=name, actor_class=cls, **given)


def test_an_actor_is_a_deployment_of_its_own() -> None:
    spec = built(actor(init_args=[1], init_kwargs={"b": 2}))
    first, second = spec.deployments
    assert spec.ingress == first.name == "owner"
    assert first.config.actors == {"a": second.name}
    assert second.name.startswith("owner::a::")
    assert (second.config.actor_of, second.config.actor_name) == ("owner", "a")
    assert pickle.loads(second.code) == (Plain, (1,), {"b": 2})
    # The config is for people and comparisons: no code, no arguments.
    (named,) = first.config.deployment_actors
    assert named.actor_class == f"{Plain.__module__}:Plain"
    assert not named.init_args


def test_a_path_leads_to_the_same() -> None:
    path = f"{Plain.__module__}:Plain"
    assert built(actor(path)) == built(actor(path.replace(":", "."))) == built(actor(Plain))


@pytest.mark.parametrize(
    ("cls", "options", "calls"),
    [(Plain, {}, 1), (Async, {}, 1000), (Plain, {"max_concurrency": 7}, 7)],
)
def test_calls_come_one_after_the_other_unless_there_are_coroutines(
    cls: type, options: dict[str, Any], calls: int
) -> None:
    _, second = built(actor(cls, actor_options=options)).deployments
    assert second.config.max_ongoing_requests == calls


def test_another_version_arguments_or_options_are_another_actor() -> None:
    names = {
        spec.deployments[1].name
        for spec in (
            built(actor()),
            built(actor(), version="2"),
            built(actor(init_args=(1,))),
            built(actor(actor_options={"num_cpus": 1})),
            built(actor(Async)),
        )
    }
    assert len(names) == 5
    assert built(actor()) == built(actor(), num_replicas=None)


def test_it_has_the_environment_of_its_deployment_unless_it_has_its_own() -> None:
    env = {"runtime_env": {"env_vars": {"A": "1"}}}
    _, inherits = built(actor(), ray_actor_options=env).deployments
    assert inherits.config.env_vars == {"A": "1"}
    other = {"runtime_env": {"env_vars": {"B": "2"}}}
    _, own = built(actor(actor_options=other), ray_actor_options=env).deployments
    assert own.config.env_vars == {"B": "2"}


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (actor("nosuch:Class"), ConfigError),
        (actor("remora:nothing"), ConfigError),
        (actor("remora:run"), ConfigError),
        (actor(actor_options={"max_concurrency": 0}), ConfigError),
        (actor(actor_options={"max_restarts": 1}), ConfigError),
        (actor(init_args=(owner.bind(),)), CodeNotPicklableError),
    ],
)
def test_refuses_what_cannot_be_right(given: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        built(given)


def test_a_capacity_queue_is_accepted_and_needs_no_process() -> None:
    queue = actor(CapacityQueue, "queue", init_kwargs={"acquire_timeout_s": 1, "token_ttl_s": 9})
    spec = built(queue)
    assert len(spec.deployments) == 1
    assert spec.deployments[0].config.actors == {}
    with pytest.raises(ConfigError, match="token_ttl_s"):
        built(actor(CapacityQueue, init_kwargs={"token_ttl_s": 0}))
