"""`@batch`: a function that takes lists is called with single values, by many callers at once.

The decorator makes a `Batched` of a coroutine function, or a `BatchedStream` of an async generator
function. Called, each hands its arguments to the queue of the object that it belongs to
(`queue`), which is made at the first call.

Types: a function of one list, and a method of one list, are typed as what they are for callers: one
value in, one value out. What takes more than one list is typed by its result alone, because Python
has no way to say "the same parameters, each without its list".
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import weakref
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Hashable, Iterable
from dataclasses import replace
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, cast, overload

from remora.batching.options import BatchOptions, WaitPolicy
from remora.batching.queue import BatchQueue
from remora.batching.reply import Answer, Items
from remora.batching.run import Call
from remora.build.by_name import ByName
from remora.config import check_keywords
from remora.observe.batches import BatchCounters

P = ParamSpec("P")
Q = ParamSpec("Q")
A = TypeVar("A")
R = TypeVar("R")
S = TypeVar("S")


class _Tunable(ABC):
    """What users do with a batched function besides calling it."""

    @abstractmethod
    def _queue(self) -> BatchQueue:
        """Where the calls wait."""

    @abstractmethod
    def _submit(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        """Let a call wait."""

    def set_max_batch_size(self, new_max_batch_size: int) -> None:
        """Change how large batches may be; the next one follows it."""
        self._change(max_batch_size=new_max_batch_size)

    def set_batch_wait_timeout_s(self, new_batch_wait_timeout_s: float) -> None:
        """Change how long an item may wait for others; the next batch follows it."""
        self._change(batch_wait_timeout_s=new_batch_wait_timeout_s)

    def statistics(self) -> dict[str, Any]:
        """Sizes, waits and times of the batches so far, by the names of Ray Serve's metrics."""
        total = BatchCounters()
        return total.read(sum([queue.count_into(total) for queue in self._all_queues()]))

    def _all_queues(self) -> list[BatchQueue]:
        return [self._queue()]

    def _change(self, **options: Any) -> None:
        queue = self._queue()
        queue.set_options(replace(queue.options, **options))

    def _get_max_batch_size(self) -> int:
        return self._queue().options.max_batch_size

    def _get_batch_wait_timeout_s(self) -> float:
        return self._queue().options.batch_wait_timeout_s


class _Answering(_Tunable, Generic[P, R]):
    """Called with single values, answers one."""

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Wait for a batch with these values in it, and for their part of its result."""
        call = self._submit(args, kwargs)
        try:
            return cast(R, await cast(Answer, call.reply).future)
        except (asyncio.CancelledError, GeneratorExit):
            call.queue.leave(call)
            raise


class _Streaming(_Tunable, Generic[P, R]):
    """Called with single values, yields single values."""

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> AsyncGenerator[R, None]:
        """Wait for a batch with these values in it, and yield their part of what it yields."""
        call = self._submit(args, kwargs)
        try:
            async for item in cast(Items, call.reply):
                yield item
        finally:
            if not call.reply.done:
                call.queue.leave(call)


class _Batchable(_Tunable, ByName):
    """A batched function, or a method as the class has it.

    Options that are set on the method of the class hold for all its objects, and its statistics
    are of all of them.
    """

    _streams = False

    def __init__(self, function: Callable[..., Any], options: BatchOptions) -> None:
        self._function = function
        self._options = options
        self.__signature__ = inspect.signature(function)
        self._num_parameters = _num_plain_parameters(self.__signature__)
        self._own_queue: BatchQueue | None = None
        # By the id of the object, which need not be hashable.
        self._queues: dict[int, tuple[weakref.ref[Any], BatchQueue]] = {}
        functools.update_wrapper(cast(Any, self), function)

    def _by_value(self) -> tuple[Any, ...]:
        """Travel without queues: they are made where the calls are."""
        return type(self), (self._function, self._options)

    def __repr__(self) -> str:
        return f"<batched {self._function.__qualname__}>"

    def _queue(self) -> BatchQueue:
        queue = self._own_queue
        if queue is None or queue.is_over:
            queue = self._own_queue = self._new_queue(queue)
        return queue

    def _submit(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        if self._num_parameters != 1 and args and self._is_owner(args[0]):
            return self._put(self._queue_of(args[0]), args[:1], args[1:], kwargs)
        return self._put(self._queue(), (), args, kwargs)

    def _is_owner(self, value: object) -> bool:
        """Whether this is called as `Class.method(obj, …)`, or as a class method.

        From Python 3.13 on a class method does not ask what it holds for a bound method, but
        calls it with the class as the first argument.
        """
        is_class = isinstance(value, type)
        for cls in (value if isinstance(value, type) else type(value)).__mro__:
            found: object = vars(cls).get(self._function.__name__)
            if found is self:
                return not is_class
            if isinstance(found, classmethod) and cast(object, found.__func__) is self:
                return is_class
        return False

    def _change(self, **options: Any) -> None:
        self._options = replace(self._options, **options)
        for queue in self._all_queues():
            queue.set_options(replace(queue.options, **options))

    def _all_queues(self) -> list[BatchQueue]:
        queues = [queue for _, queue in list(self._queues.values())]
        return queues if self._own_queue is None else [*queues, self._own_queue]

    def _queue_of(self, owner: Any) -> BatchQueue:
        """The queue of an object that has this as its method."""
        key = id(owner)
        found = self._queues.get(key)
        if found is not None and not found[1].is_over:
            return found[1]
        try:
            reference = weakref.ref(owner, lambda _: self._queues.pop(key, None))
        except TypeError:
            raise TypeError(
                f"{type(owner).__name__} has a batched method, so its objects must allow weak "
                "references: add '__weakref__' to its __slots__"
            ) from None
        if found is not None:
            self._queues[key] = reference, self._new_queue(found[1])
            return self._queues[key][1]
        # A plain `reconfigure` runs in a thread: the first one wins.
        return self._queues.setdefault(key, (reference, self._new_queue(None)))[1]

    def _new_queue(self, before: BatchQueue | None) -> BatchQueue:
        options = replace(self._options if before is None else before.options)
        return BatchQueue(
            self._function.__qualname__, self._function, options, streams=self._streams
        )

    def _put(
        self,
        queue: BatchQueue,
        owner: tuple[Any, ...],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Call:
        """Put a call into a queue, in the one form that calls with these arguments have."""
        if not kwargs and len(args) + len(owner) == self._num_parameters and args:
            return queue.submit(owner, args, kwargs, len(args))
        bound = self.__signature__.bind(*owner, *args, **kwargs)
        args, kwargs = bound.args[len(owner) :], bound.kwargs
        if not args and not kwargs:
            raise TypeError(
                f"{self._function.__qualname__} is batched and was called without an argument: "
                "without one there is nothing to make a list of"
            )
        return queue.submit(
            owner, args, kwargs, (len(args), *sorted(kwargs)) if kwargs else len(args)
        )


class _Bound(_Tunable):
    """A batched method of one object."""

    def __init__(self, batched: _Batchable, owner: Any) -> None:
        self._batched = batched
        self.__self__ = owner
        self.__doc__ = batched.__doc__

    def __getattr__(self, name: str) -> Any:
        # Name, docstring and whatever other decorators have set on the function.
        if name == "_batched":
            raise AttributeError(name)  # A copy that is being made has nothing yet.
        return getattr(self._batched, name)

    def __repr__(self) -> str:
        return f"<batched {self._batched._function.__qualname__} of {self.__self__!r}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self.__self__, self._batched._function.__name__)

    @property
    def __signature__(self) -> inspect.Signature:
        signature = self._batched.__signature__
        return signature.replace(parameters=list(signature.parameters.values())[1:])

    def _queue(self) -> BatchQueue:
        return self._batched._queue_of(self.__self__)

    def _submit(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        return self._batched._put(self._queue(), (self.__self__,), args, kwargs)


class BoundBatch(_Bound, _Answering[P, R]):
    """A batched method of one object: takes single values, answers one."""


class BoundBatchStream(_Bound, _Streaming[P, R]):
    """A batched generator method of one object: takes single values, yields single values."""


class Batched(_Batchable, _Answering[P, R]):
    """A batched function: takes single values, answers one."""

    @overload
    def __get__(self, instance: None, owner: type | None = None) -> Batched[P, R]: ...

    @overload
    def __get__(
        self: Batched[Concatenate[Any, Q], R], instance: object, owner: type | None = None
    ) -> BoundBatch[Q, R]: ...

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else BoundBatch(self, instance)


class BatchedStream(_Batchable, _Streaming[P, R]):
    """A batched generator function: takes single values, yields single values."""

    _streams = True

    @overload
    def __get__(self, instance: None, owner: type | None = None) -> BatchedStream[P, R]: ...

    @overload
    def __get__(
        self: BatchedStream[Concatenate[Any, Q], R], instance: object, owner: type | None = None
    ) -> BoundBatchStream[Q, R]: ...

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else BoundBatchStream(self, instance)


class _Decorator(Protocol):
    """What `batch(...)` returns."""

    @overload
    def __call__(
        self, function: Callable[[list[A]], Coroutine[Any, Any, Iterable[R]]], /
    ) -> Batched[[A], R]: ...

    @overload
    def __call__(
        self, function: Callable[[S, list[A]], Coroutine[Any, Any, Iterable[R]]], /
    ) -> Batched[[S, A], R]: ...

    @overload
    def __call__(
        self, function: Callable[..., Coroutine[Any, Any, Iterable[R]]], /
    ) -> Batched[Concatenate[Any, ...], R]: ...

    @overload
    def __call__(
        self, function: Callable[[list[A]], AsyncIterator[Iterable[R]]], /
    ) -> BatchedStream[[A], R]: ...

    @overload
    def __call__(
        self, function: Callable[[S, list[A]], AsyncIterator[Iterable[R]]], /
    ) -> BatchedStream[[S, A], R]: ...

    @overload
    def __call__(
        self, function: Callable[..., AsyncIterator[Iterable[R]]], /
    ) -> BatchedStream[Concatenate[Any, ...], R]: ...


@overload
def batch(_func: Callable[[list[A]], Coroutine[Any, Any, Iterable[R]]], /) -> Batched[[A], R]: ...


@overload
def batch(
    _func: Callable[[S, list[A]], Coroutine[Any, Any, Iterable[R]]], /
) -> Batched[[S, A], R]: ...


@overload
def batch(
    _func: Callable[..., Coroutine[Any, Any, Iterable[R]]], /
) -> Batched[Concatenate[Any, ...], R]: ...


@overload
def batch(_func: Callable[[list[A]], AsyncIterator[Iterable[R]]], /) -> BatchedStream[[A], R]: ...


@overload
def batch(
    _func: Callable[[S, list[A]], AsyncIterator[Iterable[R]]], /
) -> BatchedStream[[S, A], R]: ...


@overload
def batch(
    _func: Callable[..., AsyncIterator[Iterable[R]]], /
) -> BatchedStream[Concatenate[Any, ...], R]: ...


@overload
def batch(
    _func: None = None,
    /,
    max_batch_size: int = 10,
    batch_wait_timeout_s: float = 0.01,
    max_concurrent_batches: int = 1,
    batch_size_fn: Callable[[list[Any]], int] | None = None,
    *,
    key_fn: Callable[[Any], Hashable] | None = None,
    wait_policy: WaitPolicy = "adaptive",
) -> _Decorator: ...


def batch(
    _func: Any = None,
    /,
    max_batch_size: int = 10,
    batch_wait_timeout_s: float = 0.01,
    max_concurrent_batches: int = 1,
    batch_size_fn: Callable[[list[Any]], int] | None = None,
    *,
    key_fn: Callable[[Any], Hashable] | None = None,
    wait_policy: WaitPolicy = "adaptive",
    **unknown: Any,
) -> Any:
    """Let callers of an `async def` that takes lists call it with single values.

    Calls that come at about the same time run together: the function gets a list for each
    argument and returns a list with one result for each item, in the same order. An exception
    among the results is raised to its own caller. An async generator function yields such lists;
    `StopIteration` or `StopAsyncIteration` among the values ends that caller's stream.

    Args:
        _func: the function or method, when used without parentheses.
        max_batch_size: how many items a batch may have; with `batch_size_fn`, its largest size.
        batch_wait_timeout_s: how long an item may wait for others at most.
        max_concurrent_batches: how many batches may run at a time.
        batch_size_fn: what a list of items (the first arguments) costs together.
        key_fn: of an item (the first argument); only items with equal keys share a batch.
        wait_policy: `adaptive`: a free model waits only for items that are likely to come soon;
            `always`: it waits for a full batch until `batch_wait_timeout_s` is over.
        unknown: refused.

    Raises:
        TypeError: not an `async def`, an option of another type, or an unknown one.
        ConfigError: a value that cannot be right (a `ValueError`).
    """
    check_keywords("batch()", unknown, BatchOptions.__dataclass_fields__)
    options = BatchOptions(
        max_batch_size,
        batch_wait_timeout_s,
        max_concurrent_batches,
        batch_size_fn,
        key_fn,
        wait_policy,
    )

    def decorate(function: Callable[..., Any]) -> Any:
        if inspect.isasyncgenfunction(function):
            return BatchedStream(function, options)
        if inspect.iscoroutinefunction(function):
            return Batched(function, options)
        raise TypeError(
            f"@batch goes on an `async def` function or method, not on {function!r}: while one "
            "caller waits for its batch, others must be able to come. Below @staticmethod or "
            "@classmethod it is right; above them it is not."
        )

    return decorate if _func is None else decorate(_func)


def _num_plain_parameters(signature: inspect.Signature) -> int:
    """How many parameters there are, when each can be given by position; else -1."""
    parameters = signature.parameters.values()
    plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return len(parameters) if all(p.kind in plain for p in parameters) else -1
