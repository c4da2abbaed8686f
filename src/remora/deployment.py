"""`@deployment`: give a class or function a name and options, and bind its arguments.

Nothing in here starts anything: a `Deployment` is code plus options, an `Application` is a
deployment plus the arguments of its constructor. `build/graph.py` turns the graph of bound
applications into what the controller understands.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Protocol, Unpack, overload

import msgspec

from remora.config import UNSET, BackpressureConfig, DeploymentConfig
from remora.options import deployment as _options
from remora.options.deployment import DeploymentOptions
from remora.options.logging import LoggingConfig
from remora.wire.codec import plain

#: Set by `ingress` on the classes that it makes.
INGRESS_MARK = "__remora_ingress__"


if TYPE_CHECKING:
    from typing_extensions import TypeVar

    #: The class that is deployed; of a function nothing is known.
    _D = TypeVar("_D", default=Any)
else:
    from typing import TypeVar

    _D = TypeVar("_D")


class Deployment(Generic[_D]):
    """A class or function with a name and options. Made by `@deployment`, never by hand."""

    __slots__ = ("_config", "_func_or_class", "_options")

    _func_or_class: Callable[..., Any]
    _options: DeploymentOptions
    _config: DeploymentConfig

    def __init__(self, *args: object, **kwargs: object) -> None:
        raise RuntimeError(
            "A Deployment is not made by hand: put @deployment on a class or function, or call "
            "deployment(...)(your_class)."
        )

    @classmethod
    def _make(cls, func_or_class: Callable[..., Any], given: DeploymentOptions) -> Deployment[Any]:
        if not callable(func_or_class):
            raise TypeError(
                f"@deployment goes on a class or function, not on {type(func_or_class).__name__} "
                f"({func_or_class!r})"
            )
        if isinstance(func_or_class, Deployment):
            raise TypeError(
                f"{func_or_class.name!r} is a deployment already; use .options(...) to change it"
            )
        made = object.__new__(cls)
        named: DeploymentOptions = given
        if given.get("name") is None:
            named = given.copy()
            named["name"] = getattr(func_or_class, "__name__", type(func_or_class).__name__)
        _options.check_deployment_name(named["name"])
        _options.check_code_options(func_or_class, named)
        made._func_or_class = func_or_class
        made._options = named
        made._config = _options.deployment_config(named)
        return made

    def options(
        self,
        func_or_class: Callable[..., Any] | None = None,
        **options: Unpack[DeploymentOptions],
    ) -> Deployment[_D]:
        """Return a deployment with these options changed; this one stays as it is.

        Args:
            func_or_class: other code; None: the same.
            options: as for `@deployment`. What is left out is inherited, a dict replaces the
                old one as a whole; a number of replicas takes the place of scaling by demand, and
                the reverse.

        Raises:
            TypeError: unknown option, or a name that is no text.
            ConfigError: a value that cannot be right.
        """
        _options.check_names(options, f"options() of deployment {self.name!r}")
        merged = _options.put_over(self._options, options)
        return Deployment._make(func_or_class or self._func_or_class, merged)

    def bind(self, *args: Any, **kwargs: Any) -> Application[_D]:
        """Fix the arguments of the constructor. Starts nothing.

        An `Application` among them, also inside lists, dicts, tuples and other picklable
        objects, reaches the constructor as a `DeploymentHandle`.

        Raises:
            ValueError: arguments for a function, which has no constructor.
        """
        if (args or kwargs) and not inspect.isclass(self._func_or_class):
            raise ValueError(
                f"bind() of deployment {self.name!r} takes no arguments: it is a function, and "
                "only a class has a constructor to pass them to"
            )
        return Application(self, args, kwargs)

    if not TYPE_CHECKING:  # Checkers shall go on to find what is misspelt.

        def __getattr__(self, name: str) -> Any:
            # `handle.method(Model.predict)` where `Model` is decorated.
            if name.startswith("_"):
                raise AttributeError(name)
            found = getattr(self._func_or_class, name, None)
            if inspect.isclass(self._func_or_class) and callable(found):
                return found
            raise AttributeError(
                f"Deployment {self.name!r} has no attribute {name!r}, and its class no method of "
                "that name"
            )

    def __call__(self, *args: object, **kwargs: object) -> NoReturn:
        """Refuse: what is deployed is called through a handle."""
        raise RuntimeError(
            f"Deployment {self.name!r} cannot be called like the class or function it is made "
            f"of. Deploy it with run({self.name}.bind(...)), or use .func_or_class in a test."
        )

    def __repr__(self) -> str:
        return f"Deployment(name={self.name!r})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Deployment):
            return NotImplemented
        return self._func_or_class is other._func_or_class and self._options == other._options

    __hash__ = object.__hash__

    @property
    def name(self) -> str:
        """Unique inside one application."""
        return self._options["name"]

    @property
    def version(self) -> None:
        """Always None: every run gets a version of its own."""
        return

    @property
    def func_or_class(self) -> type[_D]:
        """What was decorated, for direct use in tests."""
        return self._func_or_class  # type: ignore[return-value]  # of a function: of Any

    @property
    def config(self) -> DeploymentConfig:
        """All options, checked, with defaults filled in."""
        return self._config

    @property
    def num_replicas(self) -> int:
        """Target number of replicas."""
        return self._config.num_replicas

    @property
    def user_config(self) -> Any:
        """Handed to the class's `reconfigure`."""
        return self._config.user_config

    @property
    def max_ongoing_requests(self) -> int:
        """Requests that one replica works on at a time."""
        return self._config.max_ongoing_requests

    @property
    def max_queued_requests(self) -> int:
        """Requests that may wait; -1: no limit."""
        return self._config.max_queued_requests

    @property
    def backpressure_config(self) -> BackpressureConfig:
        """How a full queue is answered."""
        return self._config.backpressure_config

    @property
    def ray_actor_options(self) -> dict[str, Any]:
        """Resources and environment as the user gave them."""
        return dict(self._options.get("ray_actor_options") or {})

    @property
    def init_args(self) -> tuple[Any, ...]:
        """Always empty: arguments belong to the `Application` that `bind` returns."""
        return ()

    @property
    def init_kwargs(self) -> dict[str, Any]:
        """Always empty: arguments belong to the `Application` that `bind` returns."""
        return {}

    @property
    def logging_config(self) -> dict[str, Any] | None:
        """How its replicas log; None: as the application or the instance says."""
        config = self._config.logging_config
        return None if config is None else msgspec.to_builtins(config, enc_hook=plain)

    def set_logging_config(self, logging_config: dict[str, Any] | LoggingConfig | None) -> None:
        """Change how its replicas log, for what is deployed from now on.

        Raises:
            ConfigError: a value that cannot be right.
        """
        options = self._options.copy()
        options["logging_config"] = logging_config
        self._config = _options.deployment_config(options)
        self._options = options


class Application(Generic[_D]):
    """A deployment with bound arguments: a node of the graph, and what `run` takes."""

    __slots__ = ("_args", "_deployment", "_kwargs")

    def __init__(
        self, deployment: Deployment[_D], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self._deployment = deployment
        self._args = args
        self._kwargs = kwargs

    def __repr__(self) -> str:
        return f"Application({self._deployment.name!r})"


class Decorator(Protocol):
    """What `@deployment(...)` with options is."""

    @overload
    def __call__(self, func_or_class: type[_D], /) -> Deployment[_D]: ...

    @overload
    def __call__(self, func_or_class: Callable[..., Any], /) -> Deployment[Any]: ...


@overload
def deployment(
    _func_or_class: type[_D], /, **options: Unpack[DeploymentOptions]
) -> Deployment[_D]: ...


@overload
def deployment(
    _func_or_class: Callable[..., Any], /, **options: Unpack[DeploymentOptions]
) -> Deployment[Any]: ...


@overload
def deployment(
    _func_or_class: None = None, /, **options: Unpack[DeploymentOptions]
) -> Decorator: ...


def deployment(_func_or_class: Any = UNSET, /, **options: Unpack[DeploymentOptions]) -> Any:
    """Make a deployment of a class or function; with or without options.

    Args:
        _func_or_class: the class or function, when used without parentheses.
        options: see `remora.options.deployment.DeploymentOptions` and `remora.config.DeploymentConfig`.

    Raises:
        TypeError: unknown option (the nearest name is in the message), or not a callable.
        ConfigError: a value that cannot be right (a `ValueError`).
    """
    _options.check_names(options, "deployment()")
    # Wrong values are reported at the line of the decorator, before the class body is looked at.
    _options.deployment_config(options)
    if "name" in options:
        _options.check_deployment_name(options["name"])

    def decorate(func_or_class: Callable[..., Any]) -> Deployment[Any]:
        return Deployment._make(func_or_class, options)

    if _func_or_class is UNSET or _func_or_class is None:
        return decorate
    return decorate(_func_or_class)
