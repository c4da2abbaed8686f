"""The start of a replica's code: from the bytes that a driver sent to the first health check.

Rules: the one module that unpickles them. The order: unpickle, constructor, ASGI app and its
startup, `reconfigure` (when there is a `user_config`), preloaded models, warm-up, first health check.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable
from typing import Any, TypeVar

import cloudpickle

from remora.context import ReplicaRank
from remora.errors import ReplicaStartError
from remora.observe.tracebacks import user_traceback
from remora.replica.methods import call_hook, in_thread, required_parameters
from remora.replica.user_code import UserCode
from remora.types import DeploymentID
from remora.wire.control import ReplicaSpec

_T = TypeVar("_T")


async def construct(spec: ReplicaSpec) -> UserCode:
    """Bring the user's deployment up, to the first health check inclusive.

    The surroundings of the spec (`sys.path`, working directory) must be in force.

    Raises:
        ReplicaStartError: a step failed; names the step, holds the user's traceback, and
            has the user's exception as its cause.

    Cancellation: a constructor written as `def` runs on in its thread.
    """
    deployment = DeploymentID(spec.deployment, spec.application)
    # Unpickling imports the user's modules, which may take seconds.
    opened = await _step(spec, "loading the code", in_thread(cloudpickle.loads, spec.code))
    target = await _step(spec, "the constructor", _make(*opened))
    code = UserCode(deployment, target)
    try:
        await _step(spec, "the ASGI app", code.start_asgi_app())
        if spec.config.user_config is not None:
            rank = ReplicaRank(*spec.ranks)
            await _step(spec, "reconfigure", code.reconfigure(spec.config.user_config, rank))
        await _step(spec, "preloading models", _preload_models(code.target))
        await _step(spec, "the warm-up", _warm_up(code, spec))
        timeout_s = spec.config.health_check_timeout_s
        await _step(spec, "the first health check", _first_health_check(code, timeout_s))
    except BaseException:
        await code.destroy()
        raise
    return code


async def _step(spec: ReplicaSpec, what: str, work: Awaitable[_T]) -> _T:
    """Await one step of a start; the user's failure becomes ours, traceback included."""
    try:
        return await work
    except ReplicaStartError:
        raise
    except (Exception, SystemExit) as error:  # border: user code
        raise ReplicaStartError(
            f"Replica {spec.replica_id} could not start: {what} failed.\n{user_traceback(error)}"
        ) from error


async def _make(target: Any, args: Any, kwargs: Any) -> Any:
    """Make the user's object; a function is its own object."""
    if not inspect.isclass(target):
        return target
    if not inspect.iscoroutinefunction(target.__init__):
        return await in_thread(target, *args, **kwargs)
    # A class cannot be called when its __init__ is a coroutine: these are the two halves.
    instance = target.__new__(target, *args, **kwargs)
    await target.__init__(instance, *args, **kwargs)
    return instance


async def _preload_models(target: Any) -> None:
    """Load what multiplexed methods of the object are to have from the start."""
    cls = type(target)
    for name in dir(cls):
        method = inspect.getattr_static(cls, name, None)
        preload = getattr(type(method), "__remora_preload__", None)
        if preload is not None:
            await preload(method, target)


async def _warm_up(code: UserCode, spec: ReplicaSpec) -> None:
    """Run the user's `warmup`, and the example requests of the options."""
    hook = code.hook("warmup")
    # One with parameters is a method for callers that happens to have this name.
    if hook is not None and not required_parameters(hook):
        await call_hook(hook)
    if spec.config.warmup_requests:
        from remora.replica.warm_up import warm_up

        await warm_up(code, spec.config.warmup_requests, spec.route_prefix)


async def _first_health_check(code: UserCode, timeout_s: float) -> None:
    limit = asyncio.timeout(timeout_s)
    try:
        async with limit:
            await code.check_health()
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise TimeoutError(
            f"check_health did not end within health_check_timeout_s={timeout_s:g}"
        ) from error
