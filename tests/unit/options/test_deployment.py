"""Deployment options: each is taken, or refused with a name and a reason."""

from __future__ import annotations

import pickle
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from remora.config import BackpressureConfig, DeploymentConfig, GangSchedulingConfig
from remora.errors import ConfigError, NotSupportedYetError
from remora.options.deployment import KEYWORDS, DeploymentOptions, check_names, deployment_config
from remora.wire.codec import pack, unpack


def config_of(**options: Any) -> DeploymentConfig:
    return deployment_config(cast(DeploymentOptions, options))


def test_no_options_are_the_defaults() -> None:
    assert config_of() == DeploymentConfig()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("num_replicas", 3),
        ("max_ongoing_requests", 7),
        ("max_queued_requests", 9),
        ("user_config", {"a": [1, None]}),
        ("health_check_period_s", 1.5),
        ("health_check_timeout_s", 2),
        ("graceful_shutdown_wait_loop_s", 0),
        ("graceful_shutdown_timeout_s", 0),
        ("max_constructor_retry_count", 1),
        ("rolling_update_percentage", 1.0),
        ("max_surge_percent", 100),
        ("idempotent", True),
    ],
)
def test_takes_over_each_plain_option(option: str, value: object) -> None:
    assert getattr(config_of(**{option: value}), option) == value


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("num_replicas", 0),
        ("num_replicas", True),
        ("num_replicas", 1.5),
        ("num_replicas", "many"),
        ("max_ongoing_requests", None),
        ("max_ongoing_requests", 0),
        ("max_queued_requests", 0),
        ("max_queued_requests", -2),
        ("max_queued_requests", 1.5),
        ("user_config", {1, 2}),
        ("user_config", object()),
        ("user_config", {"seed": 2**70}),
        ("user_config", {"labels": [{None: "other"}]}),
        ("user_config", {True: "yes"}),
        ("health_check_period_s", 0),
        ("health_check_timeout_s", -1),
        ("health_check_timeout_s", float("nan")),
        ("graceful_shutdown_wait_loop_s", -0.1),
        ("graceful_shutdown_timeout_s", "soon"),
        ("max_constructor_retry_count", 0),
        ("rolling_update_percentage", 0),
        ("rolling_update_percentage", 1.1),
        ("max_surge_percent", 101),
        ("max_surge_percent", -1),
        ("backpressure_config", {"status_code": 500}),
        ("backpressure_config", {"retry_after_s": -1}),
        ("backpressure_config", {"retry_after": 1}),
        ("backpressure_config", 503),
        ("idempotent", "yes"),
        ("ray_actor_options", {"max_concurrency": 3}),
        ("ray_actor_options", {"num_cpus": -1}),
        ("ray_actor_options", {"num_gpus": "one"}),
        ("ray_actor_options", {"resources": {"CPU": 1}}),
        ("ray_actor_options", {"resources": {"x": -1}}),
        ("ray_actor_options", {"runtime_env": {"env_vars": {"A": 1}}}),
        ("preload", "json"),
        ("preload", [1]),
        ("preload", ["json:"]),
        ("preload", ["__main__:load"]),
        ("ray_actor_options", {"num_gpus": 1.5}),
        ("ray_actor_options", {"accelerator_type": 100}),
        ("ray_actor_options", {"label_selector": {"zone": 1}}),
        ("ray_actor_options", {"fallback_strategy": [{"zone": "eu"}]}),
        ("placement_group_strategy", "PACK"),
        ("placement_group_bundles", []),
        ("placement_group_bundles", [{}]),
        ("placement_group_bundles", [{"CPU": -1}]),
        ("gang_scheduling_config", {"size": 2}),
        ("gang_scheduling_config", {}),
        ("gang_scheduling_config", {"gang_size": 0}),
        ("gang_scheduling_config", {"gang_size": 1, "gang_placement_strategy": "STRICT_PACK"}),
        ("gang_scheduling_config", {"gang_size": 1, "runtime_failure_policy": "NONE"}),
        ("max_replicas_per_node", 101),
        ("autoscaling_config", {"min_replicas": 3, "max_replicas": 2}),
        ("autoscaling_config", {"min_replica": 3}),
        ("logging_config", {"level": "INFO"}),
        ("deployment_actors", [{"name": "a"}]),
        ("deployment_actors", [{"name": "a", "actor_class": "m:A"}] * 2),
        ("deployment_actors", [{"name": "a", "actor_class": "m:A", "args": ()}]),
        ("deployment_actors", [{"name": "a#b", "actor_class": "m:A"}]),
        ("deployment_actors", [{"name": "a", "actor_class": 1}]),
        ("deployment_actors", [{"name": "a", "actor_class": "m:A", "init_args": "x"}]),
    ],
)
def test_refuses_what_cannot_be_right_and_names_the_option(option: str, value: object) -> None:
    with pytest.raises(ValueError, match=option) as caught:
        config_of(**{option: value})
    assert isinstance(caught.value, ConfigError)
    assert not isinstance(caught.value, NotSupportedYetError)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("ray_actor_options", {"runtime_env": {"conda": "x"}}),
    ],
)
def test_never_ignores_what_nothing_acts_on(option: str, value: object) -> None:
    with pytest.raises(NotSupportedYetError, match=option):
        config_of(**{option: value})


def test_max_replicas_per_node_of_a_wrong_type_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="max_replicas_per_node"):
        config_of(max_replicas_per_node="2")


def test_a_count_beside_autoscaling_is_a_contradiction() -> None:
    with pytest.raises(ValueError, match="autoscaling_config"):
        config_of(num_replicas=2, autoscaling_config={"min_replicas": 1})


def test_none_means_the_default_where_it_is_allowed() -> None:
    config = config_of(
        num_replicas=None,
        user_config=None,
        ray_actor_options=None,
        backpressure_config=None,
        autoscaling_config=None,
        logging_config=None,
        placement_group_bundles=None,
    )
    assert config == DeploymentConfig()


def test_actor_options_become_resources_and_environment() -> None:
    config = config_of(
        ray_actor_options={
            "num_cpus": 0.5,
            "num_gpus": 1,
            "memory": 100,
            "resources": {"tpu": 2},
            "runtime_env": {"env_vars": {"A": "1"}},
        }
    )
    assert config.resources == {"CPU": 0.5, "GPU": 1.0, "memory": 100.0, "tpu": 2.0}
    assert config.env_vars == {"A": "1"}


def test_what_states_no_cpus_reserves_none() -> None:
    assert config_of(ray_actor_options={"num_gpus": 1}).resources == {"GPU": 1.0}


@pytest.mark.parametrize("value", [BackpressureConfig(status_code=429), {"status_code": 429}])
def test_backpressure_comes_as_struct_or_dict(value: object) -> None:
    assert config_of(backpressure_config=value).backpressure_config.status_code == 429


def test_an_unknown_keyword_names_the_nearest() -> None:
    with pytest.raises(TypeError, match=r"'max_ongoing_request'.*Did you mean 'max_ongoing_requ"):
        check_names({"max_ongoing_request": 3}, "deployment()")


def test_version_was_removed() -> None:
    with pytest.raises(ValueError, match="version"):
        check_names({"version": "1"}, "deployment()")


@given(st.sampled_from(KEYWORDS), st.none() | st.integers() | st.text() | st.lists(st.integers()))
def test_any_value_is_taken_or_refused_never_ignored(option: str, value: object) -> None:
    if option in ("version", "name"):
        return
    try:
        config = config_of(**{option: value})
    except (ConfigError, TypeError):
        return
    took = getattr(config, option, None)
    taken = value in (took, list(took) if isinstance(took, tuple) else took)
    assert taken or value is None or config.resources


def test_errors_survive_pickling() -> None:
    with pytest.raises(ConfigError) as caught:
        config_of(num_replicas=0)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert type(copy) is ConfigError
    assert str(copy) == str(caught.value)
    assert copy.field == "num_replicas"


@pytest.mark.parametrize(
    ("option", "advice"),
    [
        ("max_concurrent_queries", "max_ongoing_requests"),
        ("route_prefix", r"run\(app, route_prefix=\.\.\.\)"),
    ],
)
def test_an_option_of_old_versions_says_where_it_has_gone(option: str, advice: str) -> None:
    with pytest.raises(TypeError, match=f"unexpected keyword argument '{option}': .*{advice}"):
        check_names({option: 1}, "deployment()")


def test_places_are_described_by_labels_and_bundles() -> None:
    config = config_of(
        num_replicas=4,
        ray_actor_options={
            "num_gpus": 1,
            "accelerator_type": "A100",
            "label_selector": {"zone": "in(eu,us)"},
            "fallback_strategy": [{"label_selector": {"zone": "asia"}}],
        },
        placement_group_bundles=[{"CPU": 1, "GPU": 1}, {"GPU": 1}],
        placement_group_bundle_label_selector=[{"disk": "ssd"}],
        gang_scheduling_config={"gang_size": 2, "gang_placement_strategy": "SPREAD"},
    )
    assert config.label_selector == {"zone": "in(eu,us)", "ray.io/accelerator-type": "A100"}
    assert config.fallback_selectors == ({"zone": "asia"},)
    assert config.placement_group_bundles == ({"CPU": 1.0, "GPU": 1.0}, {"GPU": 1.0})
    assert config.placement_group_strategy == "PACK"
    assert config.placement_group_bundle_label_selector == ({"disk": "ssd"},)
    assert config.gang_scheduling_config == GangSchedulingConfig(
        gang_size=2, gang_placement_strategy="SPREAD"
    )


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (
            {
                "placement_group_bundles": [{"CPU": 1}],
                "ray_actor_options": {"num_cpus": 2},
            },
            "first bundle.*CPU=2",
        ),
        (
            {"placement_group_bundles": [{"CPU": 1}], "max_replicas_per_node": 1},
            "max_replicas_per_node",
        ),
        (
            {"gang_scheduling_config": {"gang_size": 1}, "max_replicas_per_node": 1},
            "max_replicas_per_node",
        ),
        (
            {
                "gang_scheduling_config": {"gang_size": 1},
                "placement_group_bundles": [{"CPU": 1}],
                "placement_group_strategy": "PACK",
            },
            "placement_group_strategy",
        ),
        ({"gang_scheduling_config": {"gang_size": 2}, "num_replicas": 3}, "num_replicas=3.*2"),
        (
            {
                "placement_group_bundles": [{"CPU": 1}],
                "placement_group_bundle_label_selector": [{}, {}],
            },
            "placement_group_bundle_label_selector",
        ),
    ],
)
def test_options_about_places_may_not_contradict_each_other(
    options: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        config_of(**options)


def test_restarting_one_replica_of_a_gang_is_not_implemented() -> None:
    with pytest.raises(NotImplementedError, match="RESTART_GANG"):
        config_of(
            gang_scheduling_config={"gang_size": 1, "runtime_failure_policy": "RESTART_REPLICA"}
        )


def test_what_is_preloaded_goes_by_name() -> None:
    config = config_of(preload=[pickle, "json", deployment_config, "os.path:join"])
    names = ("pickle", "json", "remora.options.deployment:deployment_config", "os.path:join")
    assert config.preload == names
    with pytest.raises(ConfigError, match="a function of a module"):
        config_of(preload=[lambda: 1])


def test_numbers_of_numpy_are_numbers() -> None:
    config = config_of(num_replicas=np.int64(2), health_check_period_s=np.float32(0.5))
    assert (config.num_replicas, config.health_check_period_s) == (2, 0.5)
    sent = unpack(pack(config), DeploymentConfig)
    assert {type(sent.num_replicas), type(sent.health_check_period_s)} == {int, float}
