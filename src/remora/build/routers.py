"""From what a user says about request routing to what controller and routers get.

A class of the user's travels by value: every router holds it, and gets it again with each change of
the deployment.
"""

from __future__ import annotations

import inspect
from typing import Any

import msgspec

from remora.build.by_value import dumped, imported
from remora.config import DEFAULT_ROUTER_CLASS, DeploymentConfig, PolicySetup, RequestRouterConfig
from remora.errors import ConfigError
from remora.types import DeploymentID

_CLASS_FIELD = "request_router_config.request_router_class"


def with_policy(config: DeploymentConfig) -> DeploymentConfig:
    """Put the setup of the routing policy into a deployment's config.

    Raises:
        ConfigError: the class cannot be found or is none, or takes no such arguments.
        CodeNotPicklableError: it cannot travel.
        TypeError: its `choose_replicas` is a plain function.
    """
    given = config.request_router_config
    if given.request_router_class == DEFAULT_ROUTER_CLASS and not given.request_router_kwargs:
        policy = _setup(given, "power_of_two")
        return msgspec.structs.replace(config, policy=policy)
    found = _resolved(given.request_router_class)
    path = f"{found.__module__}:{found.__qualname__}"
    named = msgspec.structs.replace(given, request_router_class=path)
    return msgspec.structs.replace(
        config, request_router_config=named, policy=_policy_of(found, given)
    )


def _policy_of(found: type, given: RequestRouterConfig) -> PolicySetup:
    from remora.router.policies import CUSTOM, built_in

    name = found.__dict__.get("policy_name")
    if name is not None:
        neutral = found.__dict__.get("neutral_kwargs", ())
        kwargs = {k: v for k, v in given.request_router_kwargs.items() if k not in neutral}
        setup = msgspec.structs.replace(_setup(given, name), kwargs=kwargs)
        built_in(setup)
        return setup
    _check_kwargs(found, given.request_router_kwargs)
    choose = inspect.getattr_static(found, "choose_replicas")
    if inspect.isfunction(choose) and not inspect.iscoroutinefunction(choose):
        raise TypeError(f"{found.__qualname__}.choose_replicas must be an `async def`.")
    code = dumped(
        found,
        _CLASS_FIELD,
        found.__qualname__,
        what="the request router",
        travels="travel to every router; load large things in initialize_state",
    )
    return msgspec.structs.replace(_setup(given, CUSTOM), code=code)


def _setup(given: RequestRouterConfig, name: str) -> PolicySetup:
    return PolicySetup(
        name=name,
        kwargs=given.request_router_kwargs,
        initial_backoff_s=given.initial_backoff_s,
        backoff_multiplier=given.backoff_multiplier,
        max_backoff_s=given.max_backoff_s,
    )


def _resolved(given: Any) -> type:
    found = imported(given, _CLASS_FIELD)
    if not isinstance(found, type) or not callable(getattr(found, "choose_replicas", None)):
        raise ConfigError(
            _CLASS_FIELD, given, "must be a class made from remora.request_router.RequestRouter"
        )
    return found


def _check_kwargs(found: type, kwargs: dict[str, Any]) -> None:
    initialize = getattr(found, "initialize_state", None)
    from remora.router.request_router import RequestRouter

    if initialize is None or initialize is RequestRouter.initialize_state:
        if kwargs:
            raise ConfigError(
                "request_router_config.request_router_kwargs",
                kwargs,
                f"{found.__qualname__} has no initialize_state that would take them",
            )
        return
    try:
        inspect.signature(initialize).bind(None, **kwargs)
    except TypeError as error:
        raise ConfigError(
            "request_router_config.request_router_kwargs",
            kwargs,
            f"initialize_state of {found.__qualname__} does not take them: {error}",
        ) from None
    if found.__module__.startswith("remora."):
        # Ours has no effects, so that it can be tried here, where somebody reads the error.
        found(DeploymentID("")).initialize_state(**kwargs)
