"""Loads models for those who ask, keeps them, and unloads them: the shell around the cache.

All decisions are in `core.model_cache`; this class runs what it decides as tasks on the replica's
loop, and is the border to the user's loader and to the models' `__del__`.

A load belongs to nobody in particular: it runs in a context of its own, so that it outlives the
request that asked first, and is cancelled once nobody waits for it any more.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from remora.build.by_name import ByName
from remora.context import replica_context_or_none
from remora.core.model_cache import (
    Action,
    Give,
    Limits,
    Load,
    ModelCache,
    Refuse,
    StopLoading,
    Ticket,
    Unload,
)
from remora.destructors import destroy
from remora.errors import USER_ERRORS
from remora.models.held import HeldModels
from remora.observe.replica_counts import LoadCounts
from remora.observe.tracebacks import user_traceback
from remora.request_context import RequestContext, current

T = TypeVar("T")

_log = logging.getLogger("remora.multiplex")


@dataclass(frozen=True)
class LoaderOptions:
    """What `@multiplexed` was given.

    Attributes:
        limits: of the cache.
        size_fn: how many bytes a model will take; None: bytes are not limited.
        pin: loaded at the start, never unloaded.
        preload: loaded at the start.
    """

    limits: Limits = field(default_factory=Limits)
    size_fn: Callable[[str], int] | None = None
    pin: tuple[str, ...] = ()
    preload: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Failure:
    """What came of a load instead of a model."""

    error: BaseException


class ModelLoader(ByName, Generic[T]):
    """The models of one multiplexed function, or of one multiplexed method of one object.

    `await loader(model_id)` gives a model, loaded if need be. It is in use, and stays, until the
    request that asked for it ends.

    Concurrency: on one event loop, the replica's.
    """

    def __init__(self, load: Callable[[str], Awaitable[T]], options: LoaderOptions) -> None:
        functools.update_wrapper(self, load)
        self._load_model = load
        self._options = options
        self._name = getattr(load, "__qualname__", repr(load))
        self._begin_anew()

    def _begin_anew(self) -> None:
        """Hold nothing, and belong to no replica yet."""
        self.counts = LoadCounts()
        self._cache = ModelCache(self._options.limits)
        self._models: dict[str, T] = {}
        self._waiting: dict[Ticket, asyncio.Future[T]] = {}
        #: Loads and unloadings at work, by model.
        self._work: dict[str, asyncio.Task[Any]] = {}
        self._users: set[asyncio.Task[object]] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._holdings = HeldModels()
        self._has_preloaded = False
        self._preloading: asyncio.Task[_Failure | None] | None = None
        #: Models that are pinned by `pin` calls alone that are still at work.
        self._pinning: dict[str, set[object]] = {}

    def _by_value(self) -> tuple[Any, ...]:
        """Travel without the models: every replica loads its own."""
        return ModelLoader, (self._load_model, self._options)

    # -- what users call ----------------------------------------------------------------------

    async def __call__(self, model_id: str, /) -> T:
        """Give the model of this id; load it if it is not here.

        Raises:
            TypeError: the id is no text, or the loader gave None.
            ValueError: the id is empty, or the model takes more than `max_bytes_per_replica`.
            RuntimeError: outside a replica, or only pinned models could make room.
            Exception: what the loader raised.

        Cancellation: the load goes on while anybody else waits for it.
        """
        self._require_id(model_id)
        self._require_replica()
        if not self._has_preloaded:
            await self.preload_configured()
            self._require_replica()  # It may have stopped meanwhile.
        self.counts.num_asked += 1
        user = self._user()
        if self._cache.take(model_id, user):
            return self._models[model_id]
        return await self._wait(model_id, user)

    async def preload(self, model_ids: Iterable[str]) -> None:
        """Load these models now, as many at a time as may be.

        Raises:
            ValueError: there is no room for so many.
            Exception: what a loader raised; the others are loaded all the same.
        """
        wanted = self._require_ids(model_ids)
        limit = self._options.limits.max_models
        if limit is not None and len(wanted | self._cache.pinned) > limit:
            raise ValueError(
                f"{self._name}: {len(wanted)} models cannot be preloaded beside "
                f"{len(self._cache.pinned - wanted)} pinned ones: there is room for {limit} "
                "(max_num_models_per_replica). Preload fewer or raise the limit."
            )
        self._require_replica()
        missing = [name for name in sorted(wanted) if not self._cache.take(name, None)]
        waits = (self._wait(model_id, None) for model_id in missing)
        for result in await asyncio.gather(*waits, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result

    async def pin(self, model_id: str) -> None:
        """Load a model, if it is not here, and never unload it.

        Raises:
            ValueError: as many models are pinned as there is room for.
            Exception: what the loader raised; the model is not pinned then.
        """
        self._require_id(model_id)
        self._require_replica()
        if model_id not in self._cache.pinned:
            self._pinning[model_id] = set()
        self._do(self._cache.pin(model_id))
        # Several may be at it: the pin holds if one of them succeeds.
        this, at_work = object(), self._pinning.get(model_id, set())
        at_work.add(this)
        try:
            if not self._cache.take(model_id, None):
                await self._wait(model_id, None)
        except BaseException:
            at_work.remove(this)
            if not at_work and self._pinning.get(model_id) is at_work:
                self.unpin(model_id)
            raise
        if self._pinning.get(model_id) is at_work:
            del self._pinning[model_id]

    def unpin(self, model_id: str) -> None:
        """Let a pinned model go when its turn comes. Harmless for one that is not pinned."""
        self._require_id(model_id)
        self._pinning.pop(model_id, None)
        self._do(self._cache.unpin(model_id))

    def loaded(self) -> list[str]:
        """The ids of the models that are here; the one that is unloaded first comes first."""
        return self._cache.loaded

    # -- what the replica calls -----------------------------------------------------------------

    @property
    def held(self) -> list[str]:
        """Models that are here or will be, the most recent last."""
        return self._cache.held

    async def preload_configured(self) -> None:
        """Load what the decorator named, once for all who need it; again after a failure."""
        if self._has_preloaded:
            return
        if not (self._options.pin or self._options.preload):
            self._has_preloaded = True
            return
        if self._preloading is None:
            self._preloading = asyncio.create_task(self._preload_configured())
            self._preloading.add_done_callback(self._on_preloaded)
        failure = await asyncio.shield(self._preloading)
        if failure is not None:
            raise failure.error

    async def close(self) -> None:
        """Cancel loads, fail those who wait, unload everything.

        A function's loader may serve again after that, in another replica of a process (a test).
        """
        for ticket in list(self._waiting):
            self._fail(ticket, RuntimeError(f"{self._name}: this replica has stopped"))
        self._do(self._cache.stop())
        if self._preloading is not None:
            await asyncio.wait((self._preloading,))
        while self._work:
            await asyncio.wait(self._work.values())
        while self._models:
            model_id, model = self._models.popitem()
            await self._destroy(model_id, model)
        self._begin_anew()

    async def _preload_configured(self) -> _Failure | None:
        options = self._options
        try:
            for model_id in options.pin:
                self._pinning.pop(model_id, None)
                self._do(self._cache.pin(model_id))
            await self.preload((*options.pin, *options.preload))
        except USER_ERRORS as error:  # Border: user code, for all who wait for it.
            return _Failure(error)
        return None

    def _on_preloaded(self, task: asyncio.Task[_Failure | None]) -> None:
        self._preloading = None
        self._has_preloaded = not task.cancelled() and task.result() is None

    # -- waiting ------------------------------------------------------------------------------

    async def _wait(self, model_id: str, user: asyncio.Task[object] | None) -> T:
        num_bytes = self._size_of(model_id)
        ticket, actions = self._cache.ask(model_id, user, num_bytes)
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting[ticket] = future
        self._do(actions)
        try:
            return await future
        finally:
            if self._waiting.pop(ticket, None) is not None:
                self._do(self._cache.give_up(ticket))
            elif future.done() and not future.cancelled():
                future.exception()  # Seen, even by somebody who was cancelled meanwhile.

    def _user(self) -> asyncio.Task[object] | None:
        """The request that asks, by the task that works on it; None: none that will end."""
        request = current.get()
        task = None if request is None else request.task
        if task is None or task.done():
            return None
        if task not in self._users:
            self._users.add(task)
            task.add_done_callback(self._on_user_ended)
        return task

    def _on_user_ended(self, task: asyncio.Task[object]) -> None:
        self._users.discard(task)
        if actions := self._cache.release(task):
            self._do(actions)

    # -- doing what the cache decides -----------------------------------------------------------

    def _do(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Load(model_id):
                    self._begin(model_id, self._load(model_id), self._on_load_ended)
                case StopLoading(model_id):
                    self._work[model_id].cancel()
                case Unload(model_id):
                    self._begin(model_id, self._unload(model_id), self._on_unload_ended)
                case Give(ticket):
                    future = self._waiting.pop(ticket)
                    if not future.done():
                        future.set_result(self._models[ticket.model_id])
                case Refuse(ticket, reason):
                    self._fail(ticket, RuntimeError(self._no_room(ticket.model_id, reason)))
        self._holdings.on_change()

    def _begin(
        self,
        model_id: str,
        work: Coroutine[Any, Any, Any],
        on_ended: Callable[[str, asyncio.Task[Any]], None],
    ) -> None:
        """Let a task work; whatever becomes of it, even if it is never begun, its end is told."""
        context = _context_of_work(model_id)
        task = asyncio.get_running_loop().create_task(work, context=context)
        self._work[model_id] = task
        task.add_done_callback(functools.partial(on_ended, model_id), context=context)

    def _fail(self, ticket: Ticket, error: BaseException) -> None:
        future = self._waiting.pop(ticket, None)
        if future is not None and not future.done():
            future.set_exception(error)

    async def _load(self, model_id: str) -> T | _Failure:
        request = current.get()
        if request is not None:
            request.task = asyncio.current_task()
        began = time.perf_counter()
        try:
            model: T | None = await self._load_model(model_id)
            if model is None:
                raise TypeError(
                    f"{self._name} returned None for model {model_id!r}; a loader returns the model"
                )
        except asyncio.CancelledError:
            if request is not None:
                request.cancel_children()
            raise
        except USER_ERRORS as raised:  # Border: user code.
            return _Failure(raised)
        took_s = time.perf_counter() - began
        self.counts.loads.observe(took_s * 1000)
        _log.info("Loaded model %r in %.3f s", model_id, took_s)
        return model

    def _on_load_ended(self, model_id: str, task: asyncio.Task[T | _Failure]) -> None:
        del self._work[model_id]
        if task.cancelled():
            error: BaseException = RuntimeError(
                f"{self._name}: the load of model {model_id!r} was cancelled"
            )
        elif isinstance(result := task.result(), _Failure):
            error = result.error
        else:
            self._models[model_id] = result
            self._do(self._cache.on_loaded(model_id))
            return
        tickets, actions = self._cache.on_load_failed(model_id)
        for ticket in tickets:
            self._fail(ticket, error)
        self._do(actions)

    async def _unload(self, model_id: str) -> None:
        await self._destroy(model_id, self._models.pop(model_id))

    def _on_unload_ended(self, model_id: str, _: asyncio.Task[None]) -> None:
        del self._work[model_id]
        self._models.pop(model_id, None)
        self._do(self._cache.on_unloaded(model_id))

    async def _destroy(self, model_id: str, model: T) -> None:
        if any(other is model for other in self._models.values()):
            return  # The same object is here under another id: it ends with the last one.
        began = time.perf_counter()
        try:
            await destroy(model)
        except USER_ERRORS as error:  # Border: user code. Nobody waits for an answer here.
            _log.error("Model %r: __del__ failed:\n%s", model_id, user_traceback(error))
        else:
            _log.info("Unloaded model %r", model_id)
        self.counts.unloads.observe((time.perf_counter() - began) * 1000)

    # -- checks -------------------------------------------------------------------------------

    def _require_id(self, model_id: object) -> None:
        if not isinstance(model_id, str):
            raise TypeError(
                f"{self._name}: a model id must be a str, not {type(model_id).__name__} "
                f"({model_id!r})"
            )
        if not model_id:
            raise ValueError(
                f"{self._name}: the model id is empty. A request names its model in the header "
                "serve_multiplexed_model_id, or by handle.options(multiplexed_model_id=...)."
            )

    def _require_ids(self, model_ids: Iterable[str]) -> set[str]:
        if isinstance(model_ids, str):
            raise TypeError(f"{self._name}: give a list of model ids, not the str {model_ids!r}")
        wanted = set(model_ids)
        for model_id in wanted:
            self._require_id(model_id)
        return wanted

    def _require_replica(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is None:
            context = replica_context_or_none()
            if context is None:
                raise RuntimeError(
                    f"{self._name} loads models only inside a replica: deploy what it belongs to, "
                    "or call the undecorated function (__wrapped__) in a test"
                )
            if context.held_models.is_closed:
                raise RuntimeError(f"{self._name}: this replica has stopped")
            self._loop = loop
            self._holdings = context.held_models
            self._holdings.join(self)
        if self._holdings.is_closed:
            raise RuntimeError(f"{self._name}: this replica has stopped")
        if loop is not self._loop:
            raise RuntimeError(
                f"{self._name} works on the replica's event loop only, not on one that was "
                "started in a thread: make the calling method `async def`"
            )

    def _size_of(self, model_id: str) -> int:
        size_fn, limit = self._options.size_fn, self._options.limits.max_bytes
        if size_fn is None or limit is None:
            return 0
        num_bytes: object = size_fn(model_id)
        if not isinstance(num_bytes, int) or isinstance(num_bytes, bool):
            raise TypeError(
                f"{self._name}: size_fn({model_id!r}) must return a number of bytes as an int, "
                f"not {type(num_bytes).__name__} ({num_bytes!r})"
            )
        if not 0 <= num_bytes <= limit:
            raise ValueError(
                f"{self._name}: model {model_id!r} takes {num_bytes} bytes, and a replica has room "
                f"for 0 to {limit} (max_bytes_per_replica)"
            )
        return num_bytes

    def _no_room(self, model_id: str, reason: str) -> str:
        pinned = ", ".join(sorted(self._cache.pinned))
        return (
            f"{self._name}: there is no room for model {model_id!r}: {reason}. Pinned: {pinned}. "
            "Unpin one or raise the limit."
        )


def _context_of_work(model_id: str) -> contextvars.Context:
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
