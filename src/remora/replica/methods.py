"""The methods of the user's object: which there are, how each is run, what it takes."""

from __future__ import annotations

import asyncio
import difflib
import functools
import inspect
from collections.abc import Callable
from enum import Enum
from typing import Any, TypeVar

from remora.errors import MethodNotFoundError
from remora.types import DeploymentID

_T = TypeVar("_T")


class MethodKind(Enum):
    """How a method is run, and whether it answers once or many times."""

    SYNC = "sync"
    ASYNC = "async"
    GENERATOR = "generator"
    ASYNC_GENERATOR = "async generator"


class UserMethod:
    """A method of the user's object, ready to be called.

    Attributes:
        name: as callers name it.
        function: bound to the object.
        kind: how it is run.
    """

    __slots__ = ("_takes_grpc_context", "function", "kind", "name")

    def __init__(self, name: str, function: Callable[..., Any], kind: MethodKind) -> None:
        self.name = name
        self.function = function
        self.kind = kind
        self._takes_grpc_context: bool | None = None

    @property
    def takes_grpc_context(self) -> bool:
        """It has a parameter named `grpc_context`."""
        if self._takes_grpc_context is None:
            self._takes_grpc_context = has_parameter(self.function, "grpc_context")
        return self._takes_grpc_context

    def __repr__(self) -> str:
        return f"UserMethod({self.name!r}, {self.kind.value})"


class Methods:
    """Finds the methods of one object, and remembers them.

    Args:
        deployment: whose code it is.
        target: the user's object, or function.
    """

    def __init__(self, deployment: DeploymentID, target: Any) -> None:
        self._deployment = deployment
        self._target = target
        self._found: dict[str, UserMethod] = {}
        self._num_http_parameters: int | None = None

    def forget(self) -> None:
        """The object may have put other callables in place of methods."""
        self._found.clear()
        self._num_http_parameters = None

    def find(self, name: str) -> UserMethod:
        """Find the method that a request names.

        Raises:
            MethodNotFoundError: there is none; lists those that are, nearest first.
        """
        found = self._found.get(name)
        if found is None:
            found = self._found[name] = self._look_up(name)
        return found

    def _look_up(self, name: str) -> UserMethod:
        function = None
        if inspect.isroutine(self._target):
            function = self._target if name == "__call__" else None
        elif name == "__call__" or not name.startswith("__"):
            function = getattr(self._target, name, None)
        if not callable(function):
            raise MethodNotFoundError(
                f"{self._deployment} has no method {name!r}. It has, nearest first: "
                f"{', '.join(self._available(name)) or 'none'}."
            )
        return UserMethod(name, function, kind_of(function))

    def _available(self, wanted: str) -> list[str]:
        """The names of the methods there are, those most like `wanted` first."""
        if inspect.isroutine(self._target):
            return ["__call__"]
        names = [
            name
            for name in dir(type(self._target))
            if (name == "__call__" or not name.startswith("_"))
            and callable(inspect.getattr_static(type(self._target), name))
        ]
        return sorted(
            names, key=lambda name: (-difflib.SequenceMatcher(None, wanted, name).ratio(), name)
        )

    @property
    def num_http_parameters(self) -> int:
        """1 when the HTTP handler wants the request, 0 when it takes nothing.

        Raises:
            TypeError: it wants more than the request.
            MethodNotFoundError: there is no handler.
        """
        if self._num_http_parameters is None:
            handler = self.find("__call__")
            self._num_http_parameters = _num_parameters(handler.function, self._deployment)
        return self._num_http_parameters


async def in_thread(function: Callable[..., _T], *args: Any, **kwargs: Any) -> _T:
    """Run `function` in a thread and return what it returns.

    A `StopIteration` comes out as a RuntimeError, as from a coroutine: a future cannot carry
    one, and whoever waited for it would wait for ever.
    """

    def run() -> _T:
        try:
            return function(*args, **kwargs)
        except StopIteration as error:
            raise RuntimeError(
                f"{getattr(function, '__qualname__', function)} raised StopIteration"
            ) from error

    return await asyncio.to_thread(run)


async def call_hook(function: Callable[..., Any], *args: Any) -> Any:
    """Call a hook of the user's: coroutines on the loop, anything else in a thread."""
    if kind_of(function) is MethodKind.ASYNC:
        return await function(*args)
    result = await in_thread(function, *args)
    return await result if inspect.isawaitable(result) else result


def kind_of(function: Callable[..., Any]) -> MethodKind:
    """Look through partials and callable objects at what will run."""
    while isinstance(function, functools.partial):
        function = function.func
    if not inspect.isroutine(function):
        function = type(function).__call__
    if inspect.isasyncgenfunction(function):
        return MethodKind.ASYNC_GENERATOR
    if inspect.iscoroutinefunction(function):
        return MethodKind.ASYNC
    if inspect.isgeneratorfunction(function):
        return MethodKind.GENERATOR
    return MethodKind.SYNC


def _num_parameters(handler: Callable[..., Any], deployment: DeploymentID) -> int:
    try:
        parameters = inspect.signature(handler).parameters.values()
    except ValueError:
        return 1  # A function of an extension without a signature: give it the request.
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    keywords = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
    required = [p.name for p in [*positional[1:], *keywords] if p.default is p.empty]
    if required:
        raise TypeError(
            f"{deployment} cannot handle HTTP: its handler also requires "
            f"{', '.join(required)}. A handler takes the request, or nothing."
        )
    return 1 if positional or any(p.kind is p.VAR_POSITIONAL for p in parameters) else 0


def required_parameters(function: Callable[..., Any]) -> list[str]:
    """Name the parameters without a default."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:
        return []  # A function of an extension without a signature.
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in variable]


def has_parameter(function: Callable[..., Any], name: str) -> bool:
    """Whether a function has a parameter of this name."""
    try:
        return name in inspect.signature(function).parameters
    except ValueError:
        return False  # A function of an extension without a signature.
