"""`@deployment`, `options` and `bind`."""

from __future__ import annotations

import copy
from typing import Any, cast

import pytest

from remora.deployment import Application, Deployment, deployment
from remora.errors import ConfigError
from remora.handle import DeploymentHandle


class Model:
    def __call__(self) -> str:
        return "x"


def function() -> str:
    return "x"


def test_works_with_and_without_parentheses() -> None:
    assert deployment(Model).name == "Model"
    assert deployment()(Model).name == "Model"
    assert deployment(name="other")(Model).name == "other"
    assert deployment(function).name == "function"


def test_gives_the_undecorated_class_back() -> None:
    assert deployment(Model).func_or_class is Model


def test_cannot_be_called_or_made_by_hand() -> None:
    with pytest.raises(RuntimeError, match="bind"):
        deployment(Model)()
    with pytest.raises(RuntimeError, match="@deployment"):
        Deployment(Model)


@pytest.mark.parametrize("wrong", [3, "Model", [Model]])
def test_refuses_what_is_not_callable(wrong: Any) -> None:
    with pytest.raises(TypeError):
        deployment()(wrong)


def test_refuses_a_deployment_of_a_deployment() -> None:
    with pytest.raises(TypeError, match="options"):
        deployment()(deployment(Model))


def test_name_must_be_text_without_a_hash() -> None:
    with pytest.raises(TypeError, match="name"):
        deployment(name=cast(Any, 3))
    with pytest.raises(ConfigError, match="#"):
        deployment(name="a#b")(Model)
    with pytest.raises(ConfigError, match="#"):
        deployment(Model).options(name="a#b")


def test_unknown_keywords_name_the_nearest() -> None:
    with pytest.raises(TypeError, match="Did you mean 'num_replicas'"):
        deployment(**cast(Any, {"num_replica": 1}))
    with pytest.raises(TypeError, match="Did you mean 'num_replicas'"):
        deployment(Model).options(**cast(Any, {"num_replica": 1}))


def test_route_prefix_moved_to_run() -> None:
    with pytest.raises(TypeError, match="route_prefix"):
        deployment(**cast(Any, {"route_prefix": "/"}))


def test_options_returns_a_new_one_and_inherits() -> None:
    first = deployment(num_replicas=2, max_ongoing_requests=9)(Model)
    second = first.options(num_replicas=3)
    assert (first.num_replicas, second.num_replicas) == (2, 3)
    assert second.max_ongoing_requests == 9
    assert second.name == "Model"
    assert first.options(name="b").name == "b"


def test_a_dict_option_replaces_the_old_one_as_a_whole() -> None:
    first = deployment(ray_actor_options={"num_cpus": 1, "num_gpus": 1})(Model)
    assert first.options(ray_actor_options={"num_cpus": 2}).config.resources == {"CPU": 2.0}
    assert first.ray_actor_options == {"num_cpus": 1, "num_gpus": 1}


def test_user_config_on_a_function_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="user_config"):
        deployment(user_config={"a": 1})(function)


def test_bind_starts_nothing_and_keeps_the_arguments() -> None:
    app = deployment(Model).bind(1, a=2)
    assert isinstance(app, Application)
    assert (app._args, app._kwargs) == ((1,), {"a": 2})


def test_a_function_takes_no_arguments() -> None:
    deployment(function).bind()
    with pytest.raises(ValueError, match="function"):
        deployment(function).bind(1)


def test_properties_of_ray_serve_exist() -> None:
    made = deployment(max_queued_requests=4)(Model)
    assert made.version is None
    assert made.max_queued_requests == 4
    assert made.backpressure_config.status_code == 503
    assert made.init_args == ()
    assert made.init_kwargs == {}
    assert made.logging_config is None


def test_equal_when_code_and_options_are() -> None:
    assert deployment(Model) == deployment(Model)
    assert deployment(Model) != deployment(num_replicas=2)(Model)
    assert copy.copy(deployment(Model)) == deployment(Model)


def test_a_method_of_the_class_can_be_named() -> None:
    class Model:
        size = 3

        def predict(self) -> int:
            return 1

    made: Any = deployment(Model)
    assert made.predict is Model.predict
    for name in ("predikt", "size", "_private"):
        with pytest.raises(AttributeError, match=name):
            getattr(made, name)
    assert copy.copy(made) == made


def test_handles_are_no_user_config() -> None:
    class Model:
        def reconfigure(self, config: Any) -> None: ...

    application = deployment(Model).bind()
    for value in (application, DeploymentHandle("Model")):
        with pytest.raises(ConfigError, match=r"user_config.*JSON"):
            deployment(user_config={"model": value})(Model)
