"""`@multiplexed`: many models on one replica, loaded when they are asked for.

The decorator checks what it is given and makes a `ModelLoader` for each object (of a method) or
for the function; `models/loader.py` does the work.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Generic, Protocol, TypeVar, overload

from remora.build.by_name import ByName
from remora.config import check_keywords
from remora.core.request.model_cache import Limits
from remora.errors import ConfigError
from remora.models.checks import LoaderOptions
from remora.models.loader import ModelLoader
from remora.request_context import current

T = TypeVar("T")

#: Attribute of a user's object that holds its loaders, by the methods that they belong to.
_LOADERS = "__remora_loaders__"
#: Options of `multiplexed`.
_OPTIONS = (
    "max_num_models_per_replica",
    "max_bytes_per_replica",
    "size_fn",
    "max_concurrent_loads",
    "pin",
    "preload",
)


def get_multiplexed_model_id() -> str:
    """The model that the current request asks for; empty: none, or this is no request."""
    request = current.get()
    return "" if request is None else request.multiplexed_model_id


class MultiplexedMethod(ByName, Generic[T]):
    """A multiplexed method in its class. On an object it is that object's `ModelLoader`."""

    def __init__(self, function: Callable[..., Any], options: LoaderOptions) -> None:
        functools.update_wrapper(self, function)
        self._function = function
        self._options = options

    def _by_value(self) -> tuple[Any, ...]:
        return MultiplexedMethod, (self._function, self._options)

    @overload
    def __get__(self, owner: None, cls: type | None = None) -> MultiplexedMethod[T]: ...
    @overload
    def __get__(self, owner: object, cls: type | None = None) -> ModelLoader[T]: ...
    def __get__(
        self, owner: object | None, cls: type | None = None
    ) -> MultiplexedMethod[T] | ModelLoader[T]:
        return self if owner is None else self._loader_of(owner)

    async def __call__(self, owner: object, model_id: str, /) -> T:
        """Give a model of `owner`; see `ModelLoader`."""
        return await self._loader_of(owner)(model_id)

    async def __remora_preload__(self, owner: object) -> None:
        """Load what the decorator named; the replica waits for it before it takes requests."""
        loader = self._loader_of(owner)
        if self._options.pin or self._options.preload:
            await loader.preload_configured()

    def _loader_of(self, owner: object) -> ModelLoader[T]:
        name = self._function.__qualname__
        try:
            loaders: dict[MultiplexedMethod[T], ModelLoader[T]] = vars(owner).setdefault(
                _LOADERS, {}
            )
        except (TypeError, AttributeError):
            raise TypeError(
                f"{name}: models are kept on the object that they belong to, and "
                f"{type(owner).__name__} has no __dict__ (it has __slots__)"
            ) from None
        loader = loaders.get(self)
        if loader is None:
            bound = functools.partial(self._function, owner)
            functools.update_wrapper(bound, self._function)
            loader = loaders[self] = ModelLoader(bound, self._options)
        return loader


class _Decorator(Protocol):
    @overload
    def __call__(self, func: Callable[[str], Coroutine[Any, Any, T]], /) -> ModelLoader[T]: ...
    @overload
    def __call__(
        self, func: Callable[[Any, str], Coroutine[Any, Any, T]], /
    ) -> MultiplexedMethod[T]: ...


@overload
def multiplexed(func: Callable[[str], Coroutine[Any, Any, T]], /) -> ModelLoader[T]: ...
@overload
def multiplexed(func: Callable[[Any, str], Coroutine[Any, Any, T]], /) -> MultiplexedMethod[T]: ...
@overload
def multiplexed(
    *,
    max_num_models_per_replica: int = 3,
    max_bytes_per_replica: int | None = None,
    size_fn: Callable[[str], int] | None = None,
    max_concurrent_loads: int = 1,
    pin: Iterable[str] = (),
    preload: Iterable[str] = (),
) -> _Decorator: ...
def multiplexed(
    func: Callable[..., Any] | None = None,
    *,
    max_num_models_per_replica: int = 3,
    max_bytes_per_replica: int | None = None,
    size_fn: Callable[[str], int] | None = None,
    max_concurrent_loads: int = 1,
    pin: Iterable[str] = (),
    preload: Iterable[str] = (),
    **unknown: Any,
) -> Any:
    """Make a loader of models of an `async def` that takes a model id.

    It goes on a method, or on a function. `await self.get_model(model_id)` then gives the model:
    the one that is here, or a freshly loaded one. When there is no room, the least recently asked
    for model that no request uses is unloaded first; its `__del__` runs, once.

    Args:
        func: what loads: `async def get_model(self, model_id)`, or without `self`.
        max_num_models_per_replica: models that a replica holds at a time; -1: any number.
        max_bytes_per_replica: bytes that they may take together; None: any number. Both limits
            hold.
        size_fn: tells, before a load, how many bytes the model of an id will take.
        max_concurrent_loads: loads and unloadings at a time. With 1, no loader runs while another
            one does.
        pin: models that are loaded before the replica takes requests, and never unloaded.
        preload: models that are loaded before the replica takes requests.
        unknown: refused.

    Raises:
        TypeError: no coroutine function of one id, a value of a wrong type, or an unknown option.
        ConfigError: a value that cannot be right.
    """
    check_keywords("multiplexed()", unknown, _OPTIONS)
    options = LoaderOptions(
        Limits(
            _limit("max_num_models_per_replica", max_num_models_per_replica),
            _bytes_limit(max_bytes_per_replica, size_fn),
            _at_least_one("max_concurrent_loads", max_concurrent_loads),
        ),
        size_fn,
        _ids("pin", pin),
        _ids("preload", preload),
    )
    _check_room(options)

    def decorate(function: Callable[..., Any]) -> Any:
        if _num_parameters(function) == 1:
            return ModelLoader(function, options)
        return MultiplexedMethod(function, options)

    return decorate if func is None else decorate(func)


def _num_parameters(function: Callable[..., Any]) -> int:
    """1 for a function, 2 for a method.

    Raises:
        TypeError: it is neither.
    """
    form = "`async def get_model(self, model_id)`, or without self as a function"
    if not callable(function):
        raise TypeError(f"@multiplexed goes on a function or method, not on {function!r}: {form}")
    if not inspect.iscoroutinefunction(function):
        raise TypeError(f"@multiplexed needs a coroutine function, not {function!r}: {form}")
    parameters = list(inspect.signature(function).parameters.values())
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if len(parameters) not in (1, 2) or any(p.kind not in by_position for p in parameters):
        names = ", ".join(str(p) for p in parameters) or "none"
        raise TypeError(
            f"{function.__qualname__} must take one model id, and takes {names}: {form}"
        )
    return len(parameters)


def _integer(name: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, not {type(value).__name__} ({value!r})")
    return value


def _limit(name: str, value: object) -> int | None:
    number = _integer(name, value)
    if number == 0 or number < -1:
        raise ConfigError(name, value, "at least 1, or -1 for any number")
    return None if number == -1 else number


def _at_least_one(name: str, value: object) -> int:
    number = _integer(name, value)
    if number < 1:
        raise ConfigError(name, value, "at least 1")
    return number


def _bytes_limit(value: object, size_fn: object) -> int | None:
    if size_fn is not None and not callable(size_fn):
        raise TypeError(f"size_fn must be a function of a model id, not {size_fn!r}")
    if value is None:
        if size_fn is not None:
            raise ConfigError("size_fn", size_fn, "it needs max_bytes_per_replica beside it")
        return None
    number = _at_least_one("max_bytes_per_replica", value)
    if size_fn is None:
        raise ConfigError("max_bytes_per_replica", value, "it needs a size_fn beside it")
    return number


def _ids(name: str, values: object) -> tuple[str, ...]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TypeError(f"{name} must be a list of model ids, not {values!r}")
    ids = tuple(dict.fromkeys(values))
    for model_id in ids:
        if not isinstance(model_id, str):
            raise TypeError(f"{name}: a model id must be a str, not {model_id!r}")
        if not model_id:
            raise ConfigError(name, list(ids), "a model id must not be empty")
    return ids


def _check_room(options: LoaderOptions) -> None:
    limit = options.limits.max_models
    together = list(dict.fromkeys((*options.pin, *options.preload)))
    if limit is not None and len(together) > limit:
        raise ConfigError(
            "pin and preload",
            together,
            f"{len(together)} models, and max_num_models_per_replica={limit}",
        )
