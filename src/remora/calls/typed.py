"""The types of methods that are called through a handle: arguments and results as they were written.

Only types: what `handle.method(Model.predict)` returns at run time is a `DeploymentHandle`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, Self, TypeVar

if TYPE_CHECKING:
    from remora.calls.selection import ReplicaSelection
    from remora.calls.streamed import DeploymentResponseGenerator
    from remora.response import DeploymentResponse

P = ParamSpec("P")
R = TypeVar("R")


class UnaryMethod(Protocol[P, R]):
    """A method with one answer."""

    def remote(self, *args: P.args, **kwargs: P.kwargs) -> DeploymentResponse[R]:
        """Call it; returns at once."""

    def dispatch(
        self, selection: ReplicaSelection, /, *args: P.args, **kwargs: P.kwargs
    ) -> DeploymentResponse[R]:
        """Call it on a replica that was chosen before."""

    def options(self, **options: Any) -> Self:
        """Return the same method with other options."""


class StreamMethod(Protocol[P, R]):
    """A method that yields any number of answers."""

    def remote(self, *args: P.args, **kwargs: P.kwargs) -> DeploymentResponseGenerator[R]:
        """Call it; returns at once."""

    def dispatch(
        self, selection: ReplicaSelection, /, *args: P.args, **kwargs: P.kwargs
    ) -> DeploymentResponseGenerator[R]:
        """Call it on a replica that was chosen before."""

    def options(self, **options: Any) -> Self:
        """Return the same method with other options."""


def is_stream(function: Callable[..., Any]) -> bool:
    """Whether a function yields, or what it was made of by decorators. Pure."""
    inner = inspect.unwrap(function)
    return inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner)


def name_of(function: object) -> str:
    """The name by which a handle calls a method. Pure.

    Raises:
        TypeError: it is no method.
    """
    name = getattr(function, "__name__", None)
    if not callable(function) or not isinstance(name, str) or inspect.isclass(function):
        raise TypeError(
            f"method() takes a method of the class, like handle.method(Model.predict), not "
            f"{function!r}; by name there is handle.options(method_name=...)"
        )
    return name
