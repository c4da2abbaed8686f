"""Turn a graph of bound applications into the `ApplicationSpec` that the controller takes.

One pass: pickling the arguments of a node meets the nodes that it depends on, wherever they
are nested; each is given a name, replaced by a handle, and pickled in its turn.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from remora.build.actors import with_actors
from remora.build.pickling import dumps_call
from remora.build.pinning import beside, pinned
from remora.build.routers import with_policy
from remora.build.scaling import scaling_policy_setup, with_scaling_policy
from remora.config import DeploymentConfig, nearest
from remora.deployment import INGRESS_MARK, Application, Deployment
from remora.errors import ConfigError, RemoraError
from remora.handle import DeploymentHandle
from remora.options.autoscaling import ScalingPolicySetup
from remora.options.autoscaling import autoscaling_policy as autoscaling_policy_of
from remora.options.logging import LoggingConfig
from remora.options.resources import RuntimeEnv
from remora.types import DEFAULT_APP_NAME
from remora.wire.control import ApplicationSpec, DeploymentSpec, Surroundings

_log = logging.getLogger("remora")

#: Part of the versions that this process gives to code.
_THIS_PROCESS = uuid.uuid4().hex
#: Modules that are worth importing once, before replicas fork, and that are safe to.
_PRELOADABLE = ("cloudpickle", "fastapi", "pydantic", "starlette")


#: No packages and folders beside those of the application.
_NOTHING = RuntimeEnv()


def build(
    target: Application,
    name: str = DEFAULT_APP_NAME,
    route_prefix: str | None = "/",
    *,
    code_version: str | None = None,
    surroundings: Surroundings | None = None,
    logging_config: LoggingConfig | None = None,
    external_scaler: bool = False,
    autoscaling_policy: Any = None,
    environment: RuntimeEnv = _NOTHING,
    change: Callable[[str, Deployment[Any]], Deployment[Any]] = lambda _name, deployment: (
        deployment
    ),
) -> ApplicationSpec:
    """Describe `target` and all that it depends on.

    Args:
        target: the root of the graph; it becomes the ingress.
        name: name of the application.
        route_prefix: where it is reachable over HTTP; None: nowhere.
        code_version: the same for the same code; None: the same only within this process, for
            equal code and arguments from an unchanged file.
        surroundings: where replicas import from; None: from where this process does.
        logging_config: of deployments that have none of their own.
        external_scaler: numbers of replicas are set from outside.
        autoscaling_policy: decides for all deployments that are scaled: an `AutoscalingPolicy`,
            a dict of its fields, or its function; None: each has its own policy.
        environment: pinned packages and folders, for what a deployment has not of its own.
        change: gives each deployment, called with its name, the options that it is to have.

    Raises:
        TypeError: `target` is no application.
        RemoraError: empty name, or two deployments made by `ingress`.
        ConfigError: a bad route prefix (a `ValueError`).
        CodeNotPicklableError: code or arguments that cannot travel.
    """
    check_target(target)
    if not name:
        raise RemoraError("An application needs a name that is not empty.")
    check_route_prefix(route_prefix)
    specs, owned = [], []
    names: dict[Application, str] = {}
    for node, node_name, code, bound in walk(target, name):
        names[node] = node_name
        version = code_version or _version(node._deployment.func_or_class, code)
        config = change(node_name, node._deployment).config
        config = _complete(config, node_name, environment, logging_config)
        config, actors = with_actors(config, node_name, version)
        owned += actors
        calls = (*bound, *(each.name for each in actors))
        specs.append(
            DeploymentSpec(
                name=node_name, code=code, code_version=version, config=config, calls=calls
            )
        )
    _check_one_ingress(names, name)
    return ApplicationSpec(
        name=name,
        route_prefix=route_prefix,
        ingress=specs[0].name,
        deployments=(*specs, *owned),
        surroundings=surroundings or surroundings_of_this_process(),
        external_scaler=external_scaler,
        scaling_policy=_application_policy(autoscaling_policy, name, specs),
    )


def _application_policy(
    given: Any, app_name: str, specs: list[DeploymentSpec]
) -> ScalingPolicySetup:
    """Make the policy of an application, which has the say over those of its deployments."""
    if given is None:
        return ScalingPolicySetup()
    policy = autoscaling_policy_of(given, "autoscaling_policy")
    overruled = [spec.name for spec in specs if spec.config.scaling_policy.path]
    if overruled:
        _log.warning(
            "The autoscaling_policy of application %r takes the place of the policies of %s.",
            app_name,
            ", ".join(overruled),
        )
    return scaling_policy_setup(policy, "autoscaling_policy")


def _complete(
    config: DeploymentConfig, name: str, environment: RuntimeEnv, logging: LoggingConfig | None
) -> DeploymentConfig:
    """Add what follows from the options and from the files that they name."""
    own = pinned(config.runtime_env, f"runtime_env of deployment {name!r}")
    env = beside(own, environment)
    config = msgspec.structs.replace(
        config, runtime_env=env, logging_config=config.logging_config or logging
    )
    return with_scaling_policy(with_policy(config))


class Node(NamedTuple):
    """A deployment of a graph.

    Attributes:
        application: as it was bound.
        name: of the deployment.
        code: pickled, with its arguments.
        calls: names of the deployments that it was bound with.
    """

    application: Application
    name: str
    code: bytes
    calls: tuple[str, ...]


def walk(target: Application, app_name: str) -> Iterator[Node]:
    """Give each node of a graph, the root first.

    Raises:
        CodeNotPicklableError: code or arguments that cannot travel.
    """
    names = {target: target._deployment.name}
    waiting = deque([target])
    #: By the node that is being pickled, in the order in which they are met.
    called: dict[str, None] = {}

    def replace(node: Application) -> DeploymentHandle[Any]:
        if node not in names:
            names[node] = _new_name(node._deployment.name, set(names.values()))
            waiting.append(node)
        called[names[node]] = None
        return DeploymentHandle(names[node], app_name)

    while waiting:
        node = waiting.popleft()
        called.clear()
        code = dumps_call(node._deployment.func_or_class, node._args, node._kwargs, replace)
        yield Node(node, names[node], code, tuple(called))


def _version(func_or_class: Callable[..., Any], code: bytes) -> str:
    """Return a version that stays while a replica made anew would be the same as one that runs.

    Another process may have imported other modules with the same bytes, and bytes that only name
    a class say nothing about what is in its file.
    """
    file = getattr(sys.modules.get(func_or_class.__module__), "__file__", None) or os.devnull
    try:
        found = Path(file).stat()
        source = f"{found.st_mtime_ns} {found.st_size}"
    except OSError:
        source = ""
    known = f"{_THIS_PROCESS} {file} {source} ".encode()
    return hashlib.sha256(known + code).hexdigest()[:32]


def _new_name(wanted: str, taken: set[str]) -> str:
    if wanted not in taken:
        return wanted
    number = 1
    while f"{wanted}_{number}" in taken:
        number += 1
    chosen = f"{wanted}_{number}"
    _log.warning("Two deployments are named %r; one of them becomes %r.", wanted, chosen)
    return chosen


def _check_one_ingress(names: dict[Application, str], app_name: str) -> None:
    found = [
        name
        for node, name in names.items()
        if getattr(node._deployment.func_or_class, INGRESS_MARK, False)
    ]
    if len(found) > 1:
        raise RemoraError(
            f"Application {app_name!r} has {len(found)} deployments made with @ingress "
            f"({', '.join(found)}); requests can enter at one only. Take @ingress off the others."
        )


def check_target(target: object) -> None:
    """Refuse anything but an `Application`.

    Raises:
        TypeError: says what to do when a deployment was forgotten to be bound.
    """
    if isinstance(target, Application):
        return
    if isinstance(target, Deployment):
        raise TypeError(
            f"Deployment {target.name!r} is not bound yet: pass {target.name}.bind(...) instead"
        )
    raise TypeError(
        f"An Application is needed, the result of .bind(), not {type(target).__name__} ({target!r})"
    )


def check_route_prefix(route_prefix: str | None) -> None:
    """Refuse a prefix that no path can begin with.

    Raises:
        ConfigError: no leading `/`, a trailing one, or `{`/`}` in it (a `ValueError`).
    """
    if route_prefix is None:
        return
    if not isinstance(route_prefix, str):
        raise ConfigError("route_prefix", route_prefix, "must be a str or None")
    if not route_prefix.startswith("/"):
        hint = nearest(route_prefix, [f"/{route_prefix}"])
        raise ConfigError("route_prefix", route_prefix, f"must start with '/'.{hint}")
    if route_prefix != "/" and route_prefix.endswith("/"):
        raise ConfigError("route_prefix", route_prefix, "must not end with '/' unless it is '/'")
    if "{" in route_prefix or "}" in route_prefix or " " in route_prefix:
        raise ConfigError("route_prefix", route_prefix, "must not contain '{', '}' or blanks")


def surroundings_of_this_process() -> Surroundings:
    """Say where this process imports from, so that replicas find the same modules."""
    cwd = str(Path.cwd())
    installed = tuple({os.path.realpath(p) for p in (sys.prefix, sys.base_prefix)})
    paths = [os.path.abspath(path or cwd) for path in sys.path]  # noqa: PTH100 - keeps links
    own = [p for p in paths if not os.path.realpath(p).startswith(installed)]
    return Surroundings(sys_path=tuple(dict.fromkeys(own)), cwd=cwd, preload=preloadable())


def preloadable() -> tuple[str, ...]:
    """Imported modules that are worth importing before replicas fork."""
    return tuple(module for module in _PRELOADABLE if module in sys.modules)
