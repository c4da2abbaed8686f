"""What users say about autoscaling: names, defaults, checks, and what becomes of a policy."""

from __future__ import annotations

import inspect
import pickle
import re
from typing import Any

import pytest

import remora as serve
from remora.autoscaling_policy import default_autoscaling_policy
from remora.build.graph import build
from remora.config import (
    AggregationFunction,
    AutoscalingConfig,
    AutoscalingContext,
    AutoscalingPolicy,
    DeploymentConfig,
)
from remora.errors import CodeNotPicklableError, ConfigError
from remora.options.autoscaling import autoscaling_config
from remora.options.deployment import DeploymentOptions, deployment_config
from remora.types import DeploymentID


def config_of(**options: Any) -> DeploymentConfig:
    return deployment_config(DeploymentOptions(**options))  # type: ignore[typeddict-item]


def scaling_of(**options: Any) -> AutoscalingConfig:
    found = config_of(**options).autoscaling_config
    assert found is not None
    return found


def test_has_the_defaults_of_the_reference() -> None:
    config = AutoscalingConfig()
    assert (config.min_replicas, config.initial_replicas, config.max_replicas) == (1, None, 1)
    assert config.target_ongoing_requests == 2
    assert (config.metrics_interval_s, config.look_back_period_s) == (10, 30)
    assert (config.upscale_delay_s, config.downscale_delay_s) == (30, 600)
    assert config.downscale_to_zero_delay_s is None
    assert (config.smoothing_factor, config.upscaling_factor, config.downscaling_factor) == (
        1.0,
        None,
        None,
    )
    assert config.aggregation_function == "mean"
    assert config.policy.is_default
    assert config.panic_window_s is None
    assert config.spare_replicas == 0


def test_nothing_is_scaled_unless_somebody_says_so() -> None:
    assert config_of().autoscaling_config is None
    assert config_of(num_replicas=3).autoscaling_config is None


def test_auto_has_another_maximum_and_keeps_what_is_given() -> None:
    assert scaling_of(num_replicas="auto").max_replicas == 100
    assert scaling_of(num_replicas="auto", autoscaling_config={"max_replicas": 7}).max_replicas == 7
    mixed = scaling_of(num_replicas="auto", autoscaling_config={"min_replicas": 2})
    assert (mixed.min_replicas, mixed.max_replicas) == (2, 100)
    assert scaling_of(autoscaling_config={"max_replicas": 4}).max_replicas == 4
    assert scaling_of(autoscaling_config={}).max_replicas == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("min_replicas", -1),
        ("min_replicas", 2),  # more than max_replicas
        ("min_replicas", 1.5),
        ("max_replicas", 0),
        ("initial_replicas", 2),
        ("initial_replicas", 0),
        ("target_ongoing_requests", 0),
        ("target_ongoing_requests", float("nan")),
        ("metrics_interval_s", 0),
        ("look_back_period_s", -1),
        ("upscaling_factor", 0),
        ("downscaling_factor", -1),
        ("upscale_delay_s", -1),
        ("downscale_delay_s", -0.1),
        ("downscale_to_zero_delay_s", -1),
        ("aggregation_function", "median"),
        ("panic_window_s", 0),
        ("panic_threshold", 0.5),
        ("spare_replicas", -1),
        ("policy", 3),
        ("policy", {"policy_function": "no path"}),
        ("policy", {"function": "a:b"}),
        ("policy", {"policy_kwargs": {"a": object()}}),
    ],
)
def test_refuses_what_cannot_be_right_and_names_the_field(field: str, value: object) -> None:
    wanted = "max_replicas" if (field, value) == ("min_replicas", 2) else field
    with pytest.raises(ConfigError, match=wanted):
        scaling_of(autoscaling_config={field: value})


def test_says_which_name_was_probably_meant() -> None:
    with pytest.raises(ConfigError, match=r"Did you mean 'min_replicas'"):
        scaling_of(autoscaling_config={"min_replica": 1})
    with pytest.raises(TypeError, match=r"Did you mean 'upscale_delay_s'"):
        AutoscalingConfig(upscale_delay=3)  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match=r"one of mean, max, min\. Did you mean 'mean'"):
        scaling_of(autoscaling_config={"aggregation_function": "meen"})


def test_the_aggregation_may_be_in_any_case() -> None:
    assert AutoscalingConfig(aggregation_function="MAX").aggregation_function == "max"


def test_the_aggregation_may_be_a_member_of_its_enumeration() -> None:
    given = AutoscalingConfig(aggregation_function=AggregationFunction.MIN).aggregation_function
    assert given == "min"
    assert type(given) is str


@pytest.mark.parametrize(
    ("given", "up", "down"),
    [
        ({}, 1.0, 1.0),
        ({"smoothing_factor": 0.5}, 0.5, 0.5),
        ({"smoothing_factor": 0.5, "upscale_smoothing_factor": 0.7}, 0.7, 0.5),
        ({"upscale_smoothing_factor": 0.7, "upscaling_factor": 0.9}, 0.9, 1.0),
        ({"downscale_smoothing_factor": 0.7, "downscaling_factor": 0.2}, 1.0, 0.2),
    ],
)
def test_the_newer_name_of_a_factor_wins(given: dict[str, Any], up: float, down: float) -> None:
    config = AutoscalingConfig(**given)
    assert (config.up_factor, config.down_factor) == (up, down)


def test_old_names_of_factors_are_told() -> None:
    with pytest.warns(DeprecationWarning, match="upscaling_factor"):
        scaling_of(autoscaling_config={"upscale_smoothing_factor": 0.5})


def test_the_last_replica_has_the_delay_of_the_others_unless_it_has_its_own() -> None:
    assert AutoscalingConfig(downscale_delay_s=7).to_zero_delay_s == 7
    assert AutoscalingConfig(downscale_delay_s=7, downscale_to_zero_delay_s=9).to_zero_delay_s == 9


def test_a_number_beside_it_is_a_contradiction() -> None:
    with pytest.raises(ConfigError, match="num_replicas"):
        config_of(num_replicas=2, autoscaling_config={})


def test_of_a_number_and_scaling_by_demand_what_was_said_last_holds() -> None:
    class Model:
        pass

    fixed = serve.deployment(num_replicas=2)(Model)
    scaled = serve.deployment(num_replicas="auto", autoscaling_config={"max_replicas": 4})(Model)
    assert fixed.options(autoscaling_config={"max_replicas": 3}).config.autoscaling_config == (
        AutoscalingConfig(max_replicas=3)
    )
    numbered = scaled.options(num_replicas=3)
    assert (numbered.config.num_replicas, numbered.config.autoscaling_config) == (3, None)
    again = numbered.options(num_replicas="auto").config.autoscaling_config
    assert again == fixed.options(num_replicas="auto").config.autoscaling_config
    kept = scaled.options(autoscaling_config={"max_replicas": 5}).config.autoscaling_config
    assert kept == autoscaling_config({"max_replicas": 5}, auto=True)
    with pytest.raises(ConfigError, match="num_replicas"):
        fixed.options(num_replicas=3, autoscaling_config={})


def test_options_replace_it_as_a_whole() -> None:
    @serve.deployment(autoscaling_config={"min_replicas": 2, "max_replicas": 9})
    class Model:
        pass

    changed = Model.options(autoscaling_config=AutoscalingConfig(max_replicas=3))
    assert changed.config.autoscaling_config == AutoscalingConfig(max_replicas=3)


# ----------------------------------------------------------------------------------- the policy


def of_model(policy: Any, **kwargs: Any) -> DeploymentConfig:
    @serve.deployment(autoscaling_config={"max_replicas": 3, "policy": policy}, **kwargs)
    class Model:
        pass

    return build(Model.bind()).deployments[0].config


def four(ctx: AutoscalingContext) -> tuple[int, dict[str, Any]]:
    return 4, {}


class Times:
    def __init__(self, factor: int) -> None:
        self.factor = factor

    def __call__(self, ctx: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        return self.factor * ctx.current_num_replicas, {}


@pytest.mark.parametrize(
    "policy",
    [
        default_autoscaling_policy,
        "remora.autoscaling_policy:default_autoscaling_policy",
        "remora.autoscaling_policy.default_autoscaling_policy",
        None,
    ],
)
def test_the_default_policy_needs_no_process(policy: object) -> None:
    config = of_model(policy)
    assert config.scaling_policy.path == ""
    assert config.autoscaling_config is not None
    assert config.autoscaling_config.policy.is_default


def test_a_policy_travels_by_value_also_when_it_is_local() -> None:
    def local(ctx: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        return 5, {"seen": 1}

    setup = of_model(local).scaling_policy
    assert setup.path.endswith("local")
    opened = pickle.loads(setup.code)
    assert opened is not local
    assert opened(None) == (5, {"seen": 1})


def test_a_policy_by_its_import_path() -> None:
    config = of_model(f"{__name__}:four")
    assert config.scaling_policy.path == f"{__name__}:four"
    assert config.autoscaling_config is not None
    assert config.autoscaling_config.policy.policy_function == f"{__name__}:four"


def test_a_class_takes_its_arguments() -> None:
    policy = AutoscalingPolicy(policy_function=Times, policy_kwargs={"factor": 2})
    assert of_model(policy).scaling_policy.kwargs == {"factor": 2}


class NotCallable:
    pass


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("no_such_module:policy", "cannot be imported"),
        (f"{__name__}:missing", "cannot be imported"),
        ({"policy_function": Times}, "does not take them"),
        ({"policy_function": four, "policy_kwargs": {"x": 1}}, "does not take them"),
        (NotCallable, "instances cannot be called"),
    ],
)
def test_refuses_a_policy_that_cannot_work(policy: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        of_model(policy)


def test_says_what_of_a_policy_cannot_travel() -> None:
    import threading

    lock = threading.Lock()

    def stuck(ctx: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        with lock:
            return 1, {}

    with pytest.raises(CodeNotPicklableError, match="lock"):
        of_model(stuck)


def test_the_policy_of_an_application_overrules_those_of_its_deployments(
    caplog: pytest.LogCaptureFixture,
) -> None:
    @serve.deployment(autoscaling_config={"policy": four})
    class Model:
        pass

    def for_all(contexts: dict[DeploymentID, AutoscalingContext]) -> Any:
        return dict.fromkeys(contexts, 2), None

    spec = build(Model.bind(), autoscaling_policy=for_all)
    assert spec.scaling_policy.path.endswith("for_all")
    assert re.search(r"takes the place of the policies of Model", caplog.text)


def test_the_context_has_every_field_of_the_reference() -> None:
    fields = set(inspect.signature(AutoscalingContext).parameters)
    fields |= {n for n, v in vars(AutoscalingContext).items() if isinstance(v, property)}
    assert fields == {
        "deployment_id",
        "deployment_name",
        "app_name",
        "current_num_replicas",
        "target_num_replicas",
        "running_replicas",
        "total_num_requests",
        "total_queued_requests",
        "total_running_requests",
        "aggregated_metrics",
        "raw_metrics",
        "capacity_adjusted_min_replicas",
        "capacity_adjusted_max_replicas",
        "policy_state",
        "last_scale_up_time",
        "last_scale_down_time",
        "current_time",
        "config",
    }


def test_the_default_policy_can_be_called_by_others() -> None:
    ctx = AutoscalingContext(
        deployment_id=DeploymentID("Model"),
        current_num_replicas=2,
        target_num_replicas=2,
        running_replicas=[],
        total_num_requests=9.0,
        total_queued_requests=1.0,
        capacity_adjusted_min_replicas=1,
        capacity_adjusted_max_replicas=10,
        current_time=0.0,
        config=AutoscalingConfig(target_ongoing_requests=2),
        policy_state={"mine": 1},
    )
    assert default_autoscaling_policy(ctx) == (4.5, {"mine": 1})
    assert ctx.total_running_requests == 8.0
