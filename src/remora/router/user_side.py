"""The thread that one custom request router lives on.

User code that routes runs in processes that serve others too (a proxy serves every application),
so it gets a thread and a loop of its own: what blocks, hangs or raises there stays there.

The border to that code: whatever it raises is handed back as a value, or to `on_error`.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any

import cloudpickle

from remora.errors import USER_ERRORS
from remora.router.request_router import RequestRouter
from remora.router.seen import PendingRequest, RunningReplica

#: Calls of hooks that wait; a router that blocks gets no more than these afterwards.
MAX_WAITING_HOOKS = 10_000
_HOOKS = (
    "on_new_queue_len_info",
    "on_replica_actor_died",
    "on_replica_actor_unavailable",
    "on_request_completed",
    "on_request_routed",
    "on_send_request",
)

#: Ids of replicas in ranks, the best first.
Ranks = list[list[str]]
OnError = Callable[[str, BaseException], None]


class UserSide:
    """One object of a user's class, on its thread."""

    def __init__(
        self, code: bytes, kwargs: dict[str, Any], given: dict[str, Any], on_error: OnError
    ) -> None:
        """Start the thread and begin to make the object.

        Args:
            code: the pickled class.
            kwargs: for its `initialize_state`.
            given: for its constructor.
            on_error: hears, on the thread, what was raised where nobody waits for an answer.
        """
        self._code = code
        self._kwargs = kwargs
        self._given = given
        self._on_error = on_error
        self._router: Any = None
        #: Why there is no object; asked requests get it.
        self._failure: BaseException | None = None
        self._replicas: list[RunningReplica] = []
        #: Hooks that were posted and that were called; each is written by one thread alone.
        self._num_posted = 0
        self._num_called = 0
        self._is_stopping = False
        #: Hooks that the class really has; none before it is there.
        self.hooks: frozenset[str] = frozenset()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._run, name=f"remora-router-{given['deployment_id']}", daemon=True
        )
        self._thread.start()

    # -- from the routers' loop -----------------------------------------------------------

    def ask(self, pending: PendingRequest) -> Future[Ranks | BaseException]:
        """Ask which replicas a request should go to; errors are results."""
        question = self._choose(pending)
        try:
            return asyncio.run_coroutine_threadsafe(question, self._loop)
        except RuntimeError as error:
            question.close()
            nobody: Future[Ranks | BaseException] = Future()
            nobody.set_result(error)
            return nobody

    def update(self, replicas: list[RunningReplica]) -> None:
        """Tell which replicas there are."""
        self._post(self._update, replicas)

    def tell(self, hook: str, *args: Any) -> None:
        """Call a hook, if the class has it and is not far behind."""
        if hook in self.hooks and self._num_posted - self._num_called < MAX_WAITING_HOOKS:
            self._num_posted += 1
            self._post(self._tell, hook, *args)

    def stop(self) -> None:
        """End the thread, once what it does now is done; nobody waits for that."""
        self._is_stopping = True
        self._post(self._loop.stop)

    def _post(self, function: Callable[..., object], *args: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            pass  # stopped

    # -- on the thread ----------------------------------------------------------------------

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._open()
        try:
            self._loop.run_forever()
            if not self._is_stopping:
                self._on_error("its loop", RuntimeError("it stopped the loop that it lives on"))
            for task in asyncio.all_tasks(self._loop):
                task.cancel()
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        finally:
            self._loop.close()

    def _open(self) -> None:
        try:
            cls = cloudpickle.loads(self._code)
            router = cls(**self._given)
            initialize = getattr(router, "initialize_state", None)
            if initialize is not None:
                initialize(**self._kwargs)
        except USER_ERRORS as error:  # Border: user code.
            self._failure = error
            self._on_error("its making", error)
            return
        self._router = router
        self.hooks = frozenset(
            hook
            for hook in _HOOKS
            if getattr(cls, hook, None) not in (None, getattr(RequestRouter, hook))
        )

    async def _choose(self, pending: PendingRequest) -> Ranks | BaseException:
        if self._failure is not None:
            return self._failure
        try:
            ranks = self._router.choose_replicas(list(self._replicas), pending)
            if inspect.isawaitable(ranks):
                ranks = await ranks
            return _ids_of(ranks)
        except USER_ERRORS as error:  # Border: user code.
            return error
        finally:
            pending.routing_context.num_attempts += 1

    def _update(self, replicas: list[RunningReplica]) -> None:
        self._replicas = replicas
        if self._router is None:
            return
        try:
            self._router.update_replicas(list(replicas))
        except USER_ERRORS as error:  # Border: user code.
            self._on_error("update_replicas", error)

    def _tell(self, hook: str, *args: Any) -> None:
        self._num_called += 1
        if self._router is None:
            return
        try:
            getattr(self._router, hook)(*args)
        except USER_ERRORS as error:  # Border: user code.
            self._on_error(hook, error)

    # -- what the user's object has to say -----------------------------------------------------

    @property
    def has_failed(self) -> bool:
        """The object could not be made, or its thread has ended, and it never will answer."""
        return self._failure is not None or not self._thread.is_alive()

    @property
    def is_first_come(self) -> bool:
        """An answer is for the request that has waited longest."""
        return bool(getattr(self._router, "first_come", False))

    def backoff(self, setup: tuple[float, float, float]) -> tuple[float, float, float]:
        """First wait, factor and longest wait between two questions about one request."""
        router = self._router
        if router is None:
            return setup
        return (
            float(getattr(router, "initial_backoff_s", setup[0])),
            float(getattr(router, "backoff_multiplier", setup[1])),
            float(getattr(router, "max_backoff_s", setup[2])),
        )


def _ids_of(ranks: Iterable[Iterable[RunningReplica]]) -> Ranks:
    """Take the ids out of what `choose_replicas` returned.

    Raises:
        TypeError: it is no list of lists of replicas.
    """
    try:
        return [[str(replica.replica_id) for replica in rank] for rank in ranks]
    except (TypeError, AttributeError):
        raise TypeError(
            "choose_replicas must return a list of lists of the candidates, and returned "
            f"{type(ranks).__name__}: {str(ranks)[:200]}"
        ) from None
