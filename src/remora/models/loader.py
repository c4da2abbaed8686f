"""Loads models for those who ask, keeps them, and unloads them: the shell around the cache.

All decisions are in `core.model_cache`; this class runs what it decides as tasks on the replica's
loop. The user's loader and the models' `__del__` are beyond `border`.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, Generic, TypeVar

from remora.build.by_name import ByName
from remora.context import replica_context_or_none
from remora.core.request.model_cache import (
    Action,
    Give,
    Load,
    ModelCache,
    Refuse,
    StopLoading,
    Ticket,
    Unload,
)
from remora.errors import USER_ERRORS
from remora.models import border
from remora.models.border import Failure
from remora.models.checks import Checks, LoaderOptions
from remora.models.held import HeldModels
from remora.observe.replica_counts import LoadCounts
from remora.request_context import current

T = TypeVar("T")


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
        self._checks = Checks(self._name, options)
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
        self._preloading: asyncio.Task[Failure | None] | None = None
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
        model_id = self._checks.id(model_id)
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
        wanted = self._checks.ids(model_ids)
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
        model_id = self._checks.id(model_id)
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
        model_id = self._checks.id(model_id)
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

    async def _preload_configured(self) -> Failure | None:
        options = self._options
        try:
            for model_id in options.pin:
                self._pinning.pop(model_id, None)
                self._do(self._cache.pin(model_id))
            await self.preload((*options.pin, *options.preload))
        except USER_ERRORS as error:  # Border: user code, for all who wait for it.
            return Failure(error)
        return None

    def _on_preloaded(self, task: asyncio.Task[Failure | None]) -> None:
        self._preloading = None
        self._has_preloaded = not task.cancelled() and task.result() is None

    # -- waiting ------------------------------------------------------------------------------

    async def _wait(self, model_id: str, user: asyncio.Task[object] | None) -> T:
        num_bytes = self._checks.size_of(model_id)
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
                    self._begin(
                        model_id,
                        border.load(self._load_model, self._name, model_id, self.counts),
                        self._on_load_ended,
                    )
                case StopLoading(model_id):
                    self._work[model_id].cancel()
                case Unload(model_id):
                    self._begin(model_id, self._unload(model_id), self._on_unload_ended)
                case Give(ticket):
                    future = self._waiting.pop(ticket)
                    if not future.done():
                        future.set_result(self._models[ticket.model_id])
                case Refuse(ticket, reason):
                    self._fail(
                        ticket,
                        RuntimeError(
                            self._checks.no_room(ticket.model_id, reason, self._cache.pinned)
                        ),
                    )
        self._holdings.on_change()

    def _begin(
        self,
        model_id: str,
        work: Coroutine[Any, Any, Any],
        on_ended: Callable[[str, asyncio.Task[Any]], None],
    ) -> None:
        """Let a task work; whatever becomes of it, even if it is never begun, its end is told."""
        context = border.context_of_work(model_id)
        task = asyncio.get_running_loop().create_task(work, context=context)
        self._work[model_id] = task
        task.add_done_callback(functools.partial(on_ended, model_id), context=context)

    def _fail(self, ticket: Ticket, error: BaseException) -> None:
        future = self._waiting.pop(ticket, None)
        if future is not None and not future.done():
            future.set_exception(error)

    def _on_load_ended(self, model_id: str, task: asyncio.Task[T | Failure]) -> None:
        del self._work[model_id]
        if task.cancelled():
            error: BaseException = RuntimeError(
                f"{self._name}: the load of model {model_id!r} was cancelled"
            )
        elif isinstance(result := task.result(), Failure):
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
        await border.unload(model_id, model, self.counts)

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
