"""What a change of an option does to running replicas: nothing, a call, or a new process.

One table, with a line for every option of a deployment. A target's `version` is made of what
restarts, its `config_key` of what reconfigures; what is lightweight is in neither.

Rules: pure. An option without a line is an error at import: nobody may forget to decide.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import msgspec

from remora.config import DeploymentConfig


class UpdateClass(StrEnum):
    """What a change of one option costs; the heaviest of several changes counts."""

    #: Controller and routers take it over; no replica hears of it.
    LIGHTWEIGHT = "lightweight"
    #: Running replicas are told, and keep their processes and their requests.
    RECONFIGURE = "reconfigure"
    #: A process is born with it: replicas are rolled.
    RESTART = "restart"


_LIGHT, _RECONFIGURE, _RESTART = UpdateClass

#: By field of `DeploymentConfig`.
UPDATE_CLASS: dict[str, UpdateClass] = {
    "num_replicas": _LIGHT,
    # Replicas enforce it, and it is the number of their threads.
    "max_ongoing_requests": _RECONFIGURE,
    "max_queued_requests": _LIGHT,
    "user_config": _RECONFIGURE,
    "health_check_period_s": _LIGHT,
    # Travels with each check.
    "health_check_timeout_s": _LIGHT,
    # Nothing reads it: a drained replica says so at once.
    "graceful_shutdown_wait_loop_s": _LIGHT,
    "graceful_shutdown_timeout_s": _LIGHT,
    "max_constructor_retry_count": _LIGHT,
    "rolling_update_percentage": _LIGHT,
    "max_surge_percent": _LIGHT,
    "rollback": _LIGHT,
    "required_ready_replicas": _LIGHT,
    # Those that run are warm.
    "warmup_requests": _LIGHT,
    "backpressure_config": _LIGHT,
    "idempotent": _LIGHT,
    "resources": _RESTART,
    "env_vars": _RESTART,
    "runtime_env": _RESTART,
    "label_selector": _RESTART,
    "fallback_selectors": _RESTART,
    "max_replicas_per_node": _RESTART,
    "placement_group_bundles": _RESTART,
    "placement_group_strategy": _RESTART,
    "placement_group_bundle_label_selector": _RESTART,
    "gang_scheduling_config": _RESTART,
    "preload": _RESTART,
    "deployment_actors": _RESTART,
    "actors": _RESTART,
    "actor_of": _RESTART,
    "actor_name": _RESTART,
    # Replicas read how often they say something of themselves.
    "request_router_config": _RECONFIGURE,
    # Follows from it, and only routers read it.
    "policy": _LIGHT,
    # Their files are opened anew.
    "logging_config": _RECONFIGURE,
    # The controller asks replicas for reports, and says how often.
    "autoscaling_config": _LIGHT,
    # Follows from it.
    "scaling_policy": _LIGHT,
}

if missing := set(DeploymentConfig.__struct_fields__) ^ set(UPDATE_CLASS):
    raise TypeError(f"core/update_class.py and DeploymentConfig differ in {sorted(missing)}")


def options_that(cost: UpdateClass, config: DeploymentConfig) -> dict[str, Any]:
    """Return the options of `config` whose change costs that much, as plain values. Pure."""
    options: Mapping[str, Any] = msgspec.to_builtins(config)
    # Of a config, every option has a value; its encoding leaves nothing out.
    return {name: value for name, value in options.items() if UPDATE_CLASS[name] is cost}


def heaviest(before: DeploymentConfig, after: DeploymentConfig) -> UpdateClass | None:
    """Say what going from one config to the other costs; None: they are equal. Pure."""
    changed = {
        UPDATE_CLASS[name] for name in UPDATE_CLASS if getattr(before, name) != getattr(after, name)
    }
    return max(changed, key=list(UpdateClass).index, default=None)
