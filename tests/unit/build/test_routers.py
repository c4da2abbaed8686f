"""What a user says about routing becomes what routers need, or is refused with a reason."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import remora
from remora.build.routers import with_policy
from remora.config import DEFAULT_ROUTER_CLASS, DeploymentConfig, RequestRouterConfig
from remora.deployment import deployment
from remora.errors import CodeNotPicklableError, ConfigError
from remora.experimental.capacity_queue_router import CapacityQueueRouter
from remora.experimental.consistent_hash_router import ConsistentHashRouter
from remora.experimental.round_robin_router import RoundRobinRouter
from remora.request_router import RequestRouter

PATH = "remora.experimental.consistent_hash_router:ConsistentHashRouter"


class Mine(RequestRouter):
    def initialize_state(self, size: int = 1) -> None:
        self.size = size


def setup(chosen: Any = DEFAULT_ROUTER_CLASS, **kwargs: Any) -> DeploymentConfig:
    config = RequestRouterConfig(request_router_class=chosen, request_router_kwargs=kwargs)
    return with_policy(DeploymentConfig(request_router_config=config))


def made(given: Any) -> RequestRouterConfig:
    return deployment(request_router_config=given)(Mine)._config.request_router_config


def test_defaults_are_those_of_ray_serve() -> None:
    config = RequestRouterConfig()
    assert config.request_router_kwargs == {}
    assert config.request_routing_stats_period_s == 10
    assert config.request_routing_stats_timeout_s == 30
    assert config.initial_backoff_s == 0.025
    assert config.backoff_multiplier == 2
    assert config.max_backoff_s == 0.5
    assert setup().policy.name == "power_of_two"


def test_arguments_that_no_router_would_take_are_refused_at_once() -> None:
    class Stateless:
        async def choose_replicas(self, candidates: Any, request: Any) -> Any:
            return [candidates]

    with pytest.raises(ValueError, match="no initialize_state"):
        setup(Stateless, size=3)

    class Inherits(RequestRouter):
        pass

    with pytest.raises(ValueError, match="no initialize_state"):
        setup(Inherits, size=3)


def test_a_plain_choose_replicas_is_refused_at_once() -> None:
    class Plain:
        def choose_replicas(self, candidates: Any, request: Any) -> Any:
            return [candidates]

    with pytest.raises(TypeError, match=r"Plain\.choose_replicas must be an `async def`"):
        setup(Plain)


def test_a_config_is_given_as_dict_or_object_and_none_is_the_default() -> None:
    given: dict[str, Any] = {"request_router_class": PATH, "initial_backoff_s": 0.1}
    assert made(given) == made(RequestRouterConfig(**given))
    assert made(None) == RequestRouterConfig()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"request_router_clas": PATH}, "Did you mean 'request_router_class'"),
        ("round_robin", "must be a dict or RequestRouterConfig"),
        ({"request_router_class": 3}, "module:Class"),
        ({"request_router_class": "no path"}, "module:Class"),
        ({"request_router_kwargs": [1]}, "must be a dict"),
        ({"request_router_kwargs": {"f": print}}, "JSON"),
        ({"request_routing_stats_period_s": 0}, "request_routing_stats_period_s"),
        ({"request_routing_stats_timeout_s": -1}, "request_routing_stats_timeout_s"),
        ({"initial_backoff_s": -1}, "initial_backoff_s"),
        ({"backoff_multiplier": 0.5}, "backoff_multiplier"),
        ({"initial_backoff_s": 1, "max_backoff_s": 0.5}, "max_backoff_s"),
    ],
)
def test_what_cannot_be_right_is_refused_at_once(given: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        made(given)


@pytest.mark.parametrize(
    ("cls", "kwargs", "name"),
    [
        (RoundRobinRouter, {}, "round_robin"),
        (ConsistentHashRouter, {"num_fallback_replicas": 0}, "consistent_hash"),
        (CapacityQueueRouter, {"capacity_queue_actor_name": "q"}, "capacity_queue"),
    ],
)
def test_built_in_classes_need_no_code_of_the_user(cls: type, kwargs: Any, name: str) -> None:
    config = setup(cls, **kwargs)
    assert (config.policy.name, config.policy.code) == (name, b"")
    path = f"{cls.__module__}:{cls.__name__}"
    assert config.request_router_config.request_router_class == path
    assert setup(path, **kwargs).policy == config.policy
    assert setup(path.replace(":", "."), **kwargs).policy == config.policy


@pytest.mark.parametrize(
    ("chosen", "kwargs", "says"),
    [
        ("no.such.module:Router", {}, "cannot be imported"),
        ("remora.request_router:Nothing", {}, "cannot be imported"),
        ("json:dumps", {}, "made from remora.request_router.RequestRouter"),
        (int, {}, "made from remora.request_router.RequestRouter"),
        (PATH, {"num_virtual_node": 3}, "Did you mean 'num_virtual_nodes'"),
        (PATH, {"num_virtual_nodes": 0}, "num_virtual_nodes"),
        (RoundRobinRouter, {"anything": 1}, "the router takes none"),
        (Mine, {"sise": 3}, "initialize_state of Mine does not take them"),
    ],
)
def test_what_cannot_be_made_is_refused_before_anything_is_deployed(
    chosen: Any, kwargs: Any, says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        setup(chosen, **kwargs)


def test_a_class_of_the_user_travels_by_value_to_where_its_module_is_not(tmp_path: Path) -> None:
    class Local(Mine):
        pass

    config = setup(Local, size=3)
    assert config.policy.name == "custom"
    assert config.policy.kwargs == {"size": 3}
    (tmp_path / "code").write_bytes(config.policy.code)
    script = f"""
import cloudpickle, pathlib, sys
cls = cloudpickle.loads(pathlib.Path({str(tmp_path / "code")!r}).read_bytes())
router = cls("id")
router.initialize_state(3)
assert router.size == 3
assert not [m for m in sys.modules if m.startswith("tests")]
print([c.__name__ for c in cls.__mro__])
"""
    # Nothing of the tests is on this path.
    env = {**os.environ, "PYTHONPATH": str(Path(remora.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=env,
    )
    assert done.stderr == ""
    assert done.stdout.strip() == "['Local', 'Mine', 'RequestRouter', 'object']"


def test_a_class_that_cannot_travel_is_refused_with_what_is_to_blame() -> None:
    lock = threading.Lock()

    class Holding(RequestRouter):
        def use(self) -> object:
            return lock

    with pytest.raises(
        CodeNotPicklableError, match=r"the request router.*in a method that runs there"
    ):
        setup(Holding)


def test_a_class_with_too_much_in_it_is_refused() -> None:
    large = b"x" * (5 * 1024 * 1024)

    class Large(RequestRouter):
        def use(self) -> object:
            return large

    with pytest.raises(ConfigError, match="load large things in initialize_state"):
        setup(Large)


def test_the_config_survives_the_wire() -> None:
    import msgspec

    config = setup(Mine, size=2)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(config), type=DeploymentConfig) == config
    assert pickle.loads(config.policy.code).__name__ == "Mine"
