"""From `deployment_actors` of a deployment to deployments of their own, which nobody sees.

An actor is one replica of a deployment that belongs to another one: it is started, watched,
restarted and called like any other. Its name says which version of its owner it belongs to, so
that a new version has actors of its own, beside those of the version before.

Rules: imports the class that a path names; starts nothing.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import operator
from typing import Any

import msgspec

from remora.build.pickling import dumps_call
from remora.build.pinning import pinned
from remora.config import DeploymentActorConfig, DeploymentConfig
from remora.deployment import Application
from remora.errors import ConfigError
from remora.options.actor import actor_fields
from remora.options.checks import require_number
from remora.wire.control import DeploymentSpec

#: Calls at a time of a class with coroutines, as on Ray.
ASYNC_CONCURRENCY = 1000


def with_actors(
    config: DeploymentConfig, owner: str, code_version: str
) -> tuple[DeploymentConfig, list[DeploymentSpec]]:
    """Describe the actors of a deployment, and say in its config where they are.

    Args:
        config: of the deployment.
        owner: its name.
        code_version: of its code.

    Raises:
        ConfigError: a class cannot be found or is none, or an option cannot be right.
        CodeNotPicklableError: class or arguments cannot travel.
    """
    if not config.deployment_actors:
        return config, []
    specs: list[DeploymentSpec] = []
    named: list[DeploymentActorConfig] = []
    names: dict[str, str] = {}
    for given in config.deployment_actors:
        found = _resolved(given)
        if getattr(found, "needs_no_process", False):
            # Its constructor checks its arguments, and has no effects.
            found(*given.init_args, **given.init_kwargs)
            continue
        code = dumps_call(found, tuple(given.init_args), dict(given.init_kwargs), _no_application)
        fields = _fields(given, found, config)
        digest = hashlib.sha256(code_version.encode() + code + msgspec.json.encode(fields))
        name = f"{owner}::{given.name}::{digest.hexdigest()[:8]}"
        names[given.name] = name
        specs.append(
            DeploymentSpec(
                name=name,
                code=code,
                code_version=code_version,
                config=DeploymentConfig(**fields, actor_of=owner, actor_name=given.name),
            )
        )
        path = f"{found.__module__}:{found.__qualname__}"
        # What is left for people and comparisons is a name; code and arguments are in the spec.
        named.append(
            DeploymentActorConfig(
                name=given.name, actor_class=path, actor_options=_plain(given.actor_options)
            )
        )
    changed = msgspec.structs.replace(config, deployment_actors=tuple(named), actors=names)
    return changed, specs


def _plain(options: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key != "runtime_env"}


def _resolved(given: DeploymentActorConfig) -> type:
    found: Any = given.actor_class
    if isinstance(found, str):
        module, _, path = found.partition(":") if ":" in found else found.rpartition(".")
        try:
            found = operator.attrgetter(path)(importlib.import_module(module))
        except (ImportError, AttributeError, ValueError) as error:
            raise ConfigError(
                f"deployment_actors[{given.name!r}].actor_class",
                given.actor_class,
                f"it cannot be imported: {error}",
            ) from error
    if not isinstance(found, type):
        raise ConfigError(
            f"deployment_actors[{given.name!r}].actor_class", given.actor_class, "must be a class"
        )
    return found


def _fields(given: DeploymentActorConfig, found: type, owner: DeploymentConfig) -> dict[str, Any]:
    field = f"deployment_actors[{given.name!r}].actor_options"
    options = dict(given.actor_options)
    calls = options.pop("max_concurrency", None)
    if calls is None:
        is_async = any(inspect.iscoroutinefunction(each) for each in vars_of(found).values())
        calls = ASYNC_CONCURRENCY if is_async else 1
    require_number(f"{field}['max_concurrency']", calls, low=1, whole=True)
    # Without an environment of its own it has that of its deployment.
    fields: dict[str, Any] = {"env_vars": owner.env_vars, "runtime_env": owner.runtime_env}
    fields |= actor_fields(options, field)
    fields["runtime_env"] = pinned(fields["runtime_env"], f"{field}['runtime_env']")
    return {**fields, "max_ongoing_requests": calls}


def vars_of(cls: type) -> dict[str, Any]:
    """Return what a class and those that it is made from define."""
    found: dict[str, Any] = {}
    for each in reversed(cls.__mro__):
        found.update(vars(each))
    return found


def _no_application(node: Application) -> object:
    raise TypeError(
        f"a deployment actor cannot be given the application {node._deployment.name!r}; give it to "
        "the deployment, or call remora.get_app_handle in the actor"
    )
