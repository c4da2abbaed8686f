"""From what a user says about an autoscaling policy to what the controller and its process get.

A policy travels by value, so that functions and classes that are defined inside of others work as
well as those that are named by an import path.
"""

from __future__ import annotations

import inspect
from typing import Any

import msgspec

from remora.build.by_value import dumped, imported
from remora.config import DeploymentConfig
from remora.errors import ConfigError
from remora.options.autoscaling import AutoscalingPolicy, ScalingPolicySetup

_FIELD = "autoscaling_config.policy"


def with_scaling_policy(config: DeploymentConfig) -> DeploymentConfig:
    """Put the setup of the autoscaling policy into a deployment's config.

    Raises:
        ConfigError: the policy cannot be found, cannot be called, or takes no such arguments.
        CodeNotPicklableError: it cannot travel.
    """
    given = config.autoscaling_config
    if given is None or given.policy.is_default:
        return config
    setup = scaling_policy_setup(given.policy, _FIELD)
    # What is left for people and comparisons is a name; the code goes beside it.
    named = AutoscalingPolicy(policy_function=setup.path, policy_kwargs=setup.kwargs)
    return msgspec.structs.replace(
        config,
        autoscaling_config=msgspec.structs.replace(given, policy=named),
        scaling_policy=setup,
    )


def scaling_policy_setup(policy: AutoscalingPolicy, field: str) -> ScalingPolicySetup:
    """Make what a policy's process needs.

    Args:
        policy: as the user gave it.
        field: what it is called where the user gave it.

    Raises:
        ConfigError: it cannot be found, cannot be called, or takes no such arguments.
        CodeNotPicklableError: it cannot travel.
    """
    found = _resolved(policy.policy_function, field)
    _check_signature(found, policy.policy_kwargs, field)
    path = _path_of(found)
    code = dumped(
        found,
        f"{field}.policy_function",
        path,
        what="the autoscaling policy",
        travels="travel; load large things in the constructor of a class",
    )
    return ScalingPolicySetup(path, code, policy.policy_kwargs)


def _path_of(found: Any) -> str:
    name = getattr(found, "__qualname__", type(found).__qualname__)
    return f"{getattr(found, '__module__', '?')}:{name}"


def _resolved(given: Any, field: str) -> Any:
    found = imported(given, f"{field}.policy_function")
    if not callable(found):
        raise ConfigError(f"{field}.policy_function", given, "must be a function or a class")
    return found


def _check_signature(found: Any, kwargs: dict[str, Any], field: str) -> None:
    """Where somebody reads the error, say that it cannot be called."""
    try:
        signature = inspect.signature(found)
    except ValueError:
        return  # A function of an extension without a signature.
    try:
        if inspect.isclass(found):
            signature.bind(**kwargs)
        else:
            signature.bind(object(), **kwargs)
    except TypeError as error:
        raise ConfigError(
            f"{field}.policy_kwargs", kwargs, f"{_path_of(found)} does not take them: {error}"
        ) from None
    # A class itself can always be called: what counts is what its own methods are.
    if inspect.isclass(found) and not any("__call__" in each.__dict__ for each in found.__mro__):
        raise ConfigError(f"{field}.policy_function", found, "its instances cannot be called")
