"""The border to the user's loader of models, and to the models' destructors.

A load belongs to nobody in particular: it runs in a context of its own, so that it outlives the
request that asked first, and is cancelled once nobody waits for it any more.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from remora.context import replica_context_or_none
from remora.destructors import destroy
from remora.errors import USER_ERRORS
from remora.observe.replica_counts import LoadCounts
from remora.observe.tracebacks import user_traceback
from remora.request_context import RequestContext, current

T = TypeVar("T")

_log = logging.getLogger("remora.multiplex")


@dataclass(frozen=True)
class Failure:
    """What came of a load instead of a model."""

    error: BaseException


async def load(
    function: Callable[[str], Awaitable[T]], name: str, model_id: str, counts: LoadCounts
) -> T | Failure:
    """Load a model.

    Args:
        function: the user's.
        name: of that function, for people.
        model_id: of the model.
        counts: where it is counted.
    """
    request = current.get()
    if request is not None:
        request.task = asyncio.current_task()
    began = time.perf_counter()
    try:
        model: T | None = await function(model_id)
        if model is None:
            raise TypeError(
                f"{name} returned None for model {model_id!r}; a loader returns the model"
            )
    except asyncio.CancelledError:
        if request is not None:
            request.cancel_children()
        raise
    except USER_ERRORS as raised:  # Border: user code.
        return Failure(raised)
    took_s = time.perf_counter() - began
    counts.loads.observe(took_s * 1000)
    _log.info("Loaded model %r in %.3f s", model_id, took_s)
    return model


async def unload(model_id: str, model: object, counts: LoadCounts) -> None:
    """Let a model go; what its destructor raises is logged, since nobody waits for an answer."""
    began = time.perf_counter()
    try:
        await destroy(model)
    except USER_ERRORS as error:  # Border: user code. Nobody waits for an answer here.
        _log.error("Model %r: __del__ failed:\n%s", model_id, user_traceback(error))
    else:
        _log.info("Unloaded model %r", model_id)
    counts.unloads.observe((time.perf_counter() - began) * 1000)


def context_of_work(model_id: str) -> contextvars.Context:
    """The context of a load or unloading: like the present one, but of a request of its own.

    It has no deadline and is not cancelled with the request that happens to ask first.
    """
    context = contextvars.copy_context()
    asker = current.get()
    replica = replica_context_or_none()
    if asker is not None:
        ids = (asker.request_id, asker.app_name, asker.deployment, asker.replica_id, asker.route)
    elif replica is not None:
        ids = ("", replica.app_name, replica.deployment, replica.replica_id, "")
    else:
        ids = ("", "", "", "", "")
    trace = "" if asker is None else asker.trace_context
    context.run(current.set, RequestContext(*ids, model_id, "", None, trace))
    return context
