"""Model serving in Python: runs alone on one machine, fast, loses no request.

Names are loaded when they are first used, so that `import remora` costs next to nothing.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from remora.api import (
        RunTarget,
        delete,
        get_replica_context,
        run,
        run_many,
        shutdown,
        shutdown_async,
        start,
        status,
    )
    from remora.batching import batch
    from remora.calls.broadcast import DeploymentBroadcastResponse
    from remora.calls.lookup import get_app_handle, get_deployment_actor, get_deployment_handle
    from remora.calls.selection import ReplicaSelection
    from remora.calls.streamed import DeploymentResponseGenerator
    from remora.config import HTTPOptions
    from remora.context import get_deployment_actor_context, get_trace_context
    from remora.deployment import Application, Deployment, deployment
    from remora.handle import DeploymentHandle
    from remora.ingress import ingress
    from remora.method import method
    from remora.multiplex import get_multiplexed_model_id, multiplexed
    from remora.preloading import preloaded
    from remora.response import DeploymentResponse
    from remora.schema import TracingConfig

#: Where each public name lives.
_HOMES = {
    "Application": "deployment",
    "Deployment": "deployment",
    "DeploymentBroadcastResponse": "calls.broadcast",
    "DeploymentHandle": "handle",
    "DeploymentResponse": "response",
    "DeploymentResponseGenerator": "calls.streamed",
    "HTTPOptions": "config",
    "ReplicaSelection": "calls.selection",
    "RunTarget": "api",
    "TracingConfig": "schema",
    "batch": "batching",
    "delete": "api",
    "deployment": "deployment",
    "get_app_handle": "calls.lookup",
    "get_deployment_actor": "calls.lookup",
    "get_deployment_actor_context": "context",
    "get_deployment_handle": "calls.lookup",
    "get_multiplexed_model_id": "multiplex",
    "get_replica_context": "context",
    "get_trace_context": "context",
    "ingress": "ingress",
    "method": "method",
    "multiplexed": "multiplex",
    "preloaded": "preloading",
    "run": "api",
    "run_many": "api",
    "shutdown": "api",
    "shutdown_async": "api",
    "start": "api",
    "status": "api",
}

#: Modules that are reached by their names, as `remora.exceptions.BackPressureError`.
_MODULES = frozenset(
    {
        "api",
        "autoscaling_policy",
        "batching",
        "config",
        "context",
        "exceptions",
        "gang",
        "grpc_util",
        "handle",
        "metrics",
        "multiplex",
        "request_router",
        "schema",
    }
)

#: Looked for here, and found elsewhere, as with Ray Serve.
_ELSEWHERE = {
    **dict.fromkeys(
        (
            "AutoscalingConfig",
            "AutoscalingPolicy",
            "ProxyLocation",
            "RequestRouterConfig",
            "gRPCOptions",
        ),
        "config",
    ),
    **dict.fromkeys(("LoggingConfig",), "schema"),
}

__all__ = [
    "Application",
    "Deployment",
    "DeploymentBroadcastResponse",
    "DeploymentHandle",
    "DeploymentResponse",
    "DeploymentResponseGenerator",
    "HTTPOptions",
    "ReplicaSelection",
    "RunTarget",
    "TracingConfig",
    "__version__",
    "batch",
    "delete",
    "deployment",
    "get_app_handle",
    "get_deployment_actor",
    "get_deployment_actor_context",
    "get_deployment_handle",
    "get_multiplexed_model_id",
    "get_replica_context",
    "get_trace_context",
    "ingress",
    "method",
    "multiplexed",
    "preloaded",
    "run",
    "run_many",
    "shutdown",
    "shutdown_async",
    "start",
    "status",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if name in _ELSEWHERE:
        module = f"remora.{_ELSEWHERE[name]}"
        raise AttributeError(
            f"module 'remora' has no attribute {name!r}. It is in {module}: from {module} import {name}"
        )
    if name in _MODULES:
        from importlib import import_module

        return import_module(f"remora.{name}")
    if home is None:
        hint = ""
        if not name.startswith("_"):  # Those are what Python and libraries look for by themselves.
            from remora.config import nearest

            hint = nearest(name, __all__)
        raise AttributeError(f"module 'remora' has no attribute {name!r}.{hint}")
    from importlib import import_module

    found = globals()[name] = getattr(import_module(f"remora.{home}"), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})


class _Package(ModuleType):
    """Lets three functions share their names with the modules that they live in.

    Whoever imports the module `remora.deployment` makes Python set it as an attribute of the
    package, where users expect the decorator. A property of the type comes before that.
    """

    @property
    def deployment(self) -> Any:
        from remora.deployment import deployment

        return deployment

    @deployment.setter
    def deployment(self, _: ModuleType) -> None:
        """Ignore the module."""

    @property
    def ingress(self) -> Any:
        from remora.ingress import ingress

        return ingress

    @ingress.setter
    def ingress(self, _: ModuleType) -> None:
        """Ignore the module."""

    @property
    def method(self) -> Any:
        from remora.method import method

        return method

    @method.setter
    def method(self, _: ModuleType) -> None:
        """Ignore the module."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel by name. Pickling libraries know only plain modules."""
        from importlib import import_module

        return import_module, (__name__,)


sys.modules[__name__].__class__ = _Package
