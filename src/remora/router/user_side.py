"""The thread that one custom request router lives on.

User code that routes runs in processes that serve others too (a proxy serves every application),
so it gets a thread and a loop of its own: what blocks, hangs or raises there stays there.

The border to that code: whatever it raises is handed back as a value, or to `on_error`. Every
question is answered or taken back, also one that is asked while the thread ends.
"""

from __future__ import annotations

import asyncio
import atexit
import inspect
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any

import cloudpickle

from remora.errors import USER_ERRORS
from remora.router.request_router import RequestRouter
from remora.router.seen import PendingRequest, RunningReplica
from remora.types import Seconds

#: Calls of hooks that wait; a router that blocks gets no more than these afterwards.
MAX_WAITING_HOOKS = 10_000
#: How long the tasks that a router leaves behind may take to end.
LEAVE_LIMIT_S: Seconds = 1.0
#: How long the interpreter waits for all such threads at its end: a router may hang.
EXIT_LIMIT_S: Seconds = 2.0
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
Answer = Ranks | BaseException
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
        #: Why nothing is answered any more; asked requests get it.
        self._failure: BaseException | None = None
        #: Held while a question is posted, and while the failure becomes known: what is posted
        #: before is answered when the thread ends, and nothing is posted after.
        self._posting = threading.Lock()
        #: Questions that were posted and have no answer.
        self._asked: set[Future[Answer]] = set()
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
        _all.add(self)
        self._thread.start()

    # -- from the routers' loop -----------------------------------------------------------

    def ask(self, pending: PendingRequest) -> Future[Answer]:
        """Ask which replicas a request should go to; errors are results.

        Whoever cancels what is returned takes the question back.
        """
        answer: Future[Answer] = Future()
        with self._posting:
            failure = self._failure
            if failure is None:
                self._asked.add(answer)
                self._loop.call_soon_threadsafe(self._begin, pending, answer)
        if failure is not None:
            answer.set_result(failure)
        return answer

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

    def wait_ended(self, limit_s: Seconds) -> bool:
        """Wait until the thread has ended, so long at most; say whether it has."""
        if self._thread is not threading.current_thread():
            self._thread.join(max(0.0, limit_s))
        return not self._thread.is_alive()

    def _post(self, function: Callable[..., object], *args: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            pass  # stopped

    # -- on the thread ----------------------------------------------------------------------

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        failure: BaseException = RuntimeError("its thread has ended")
        try:
            failure = self._open() or self._serve()
        finally:
            self._end(failure)

    def _open(self) -> BaseException | None:
        """Make the object, or say why there is none."""
        try:
            cls = cloudpickle.loads(self._code)
            router = cls(**self._given)
            initialize = getattr(router, "initialize_state", None)
            if initialize is not None:
                initialize(**self._kwargs)
        except USER_ERRORS as error:  # Border: user code.
            self._on_error("its making", error)
            return error
        self._router = router
        self.hooks = frozenset(
            hook
            for hook in _HOOKS
            if getattr(cls, hook, None) not in (None, getattr(RequestRouter, hook))
        )
        return None

    def _serve(self) -> BaseException:
        """Answer until the loop stops, and say why it did."""
        try:
            self._loop.run_forever()
            failure: BaseException = RuntimeError("it stopped the loop that it lives on")
        except USER_ERRORS as error:  # Border: a task of the user's that exits.
            failure = error
        if not self._is_stopping:
            self._on_error("its loop", failure)
        return failure

    def _end(self, failure: BaseException) -> None:
        with self._posting:
            self._failure = failure
        for answer in list(self._asked):
            self._give(answer, failure)
        try:
            self._loop.run_until_complete(self._leave())
        except USER_ERRORS:  # Border: user code that resists its end; nobody waits for it.
            pass
        finally:
            self._loop.close()

    async def _leave(self) -> None:
        """End what still runs on the loop."""
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=LEAVE_LIMIT_S)
        await self._loop.shutdown_asyncgens()

    def _begin(self, pending: PendingRequest, answer: Future[Answer]) -> None:
        """Put a question to the user's code."""
        if answer not in self._asked:
            return  # answered, because the thread ends
        task = self._loop.create_task(self._choose(pending, answer))

        def take_back(_: Future[Answer]) -> None:
            if answer.cancelled():
                self._post(task.cancel)

        answer.add_done_callback(take_back)
        task.add_done_callback(lambda _: self._give(answer, _result_of(task)))

    def _give(self, answer: Future[Answer], value: Answer) -> None:
        if answer in self._asked:
            self._asked.discard(answer)
            if answer.set_running_or_notify_cancel():
                answer.set_result(value)

    async def _choose(self, pending: PendingRequest, answer: Future[Answer]) -> Answer:
        if answer.cancelled():
            raise asyncio.CancelledError  # taken back while the thread was busy
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
        return self._failure is not None

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


#: Those of this process.
_all: weakref.WeakSet[UserSide] = weakref.WeakSet()


@atexit.register
def _end_threads() -> None:
    """See the threads end: what they call may crash where the interpreter goes under its feet."""
    sides = list(_all)
    for side in sides:
        side.stop()
    deadline = time.monotonic() + EXIT_LIMIT_S
    for side in sides:
        side.wait_ended(deadline - time.monotonic())


def _result_of(task: asyncio.Task[Answer]) -> Answer:
    if task.cancelled():
        return RuntimeError("it cancelled itself")
    error = task.exception()
    return task.result() if error is None else error


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
