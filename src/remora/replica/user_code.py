"""The user's code inside a replica: its object, its ASGI app, its hooks, and its end.

Rules: knows nothing of the wire, of limits or of HTTP; it is told what to do by the replica's life
and says how the user's code fared. How it comes to be is in `construction`, what it answers to in
`methods`. The order of an end: ASGI shutdown, destructor.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import Any, cast

from remora.destructors import destroy
from remora.errors import ReplicaStartError
from remora.observe.tracebacks import user_traceback
from remora.replica.lifespan import ASGIApp, Lifespan
from remora.replica.methods import MethodKind, Methods, call_hook, has_parameter, kind_of
from remora.types import DeploymentID

logger = logging.getLogger(__name__)


class UserCode:
    """One constructed copy of the user's deployment.

    Made by `construction.construct`, ended by `destroy`.

    Concurrency: awaited on the replica's loop. What the user wrote as plain `def` runs in a
    thread, so the loop stays alive while a model loads.

    Attributes:
        deployment: whose code it is.
        target: the user's object, or function.
        methods: those of the object.
        asgi_app: the app that serves HTTP requests; None: requests go to `__call__`.
        lifespan: of that app; requests get a copy of its `state`.
    """

    def __init__(self, deployment: DeploymentID, target: Any) -> None:
        self.deployment = deployment
        self.target = target
        self.asgi_app: ASGIApp | None = None
        self.lifespan: Lifespan | None = None
        self.methods = Methods(deployment, target)
        self._destroyed = False

    async def start_asgi_app(self) -> None:
        """Ask the object for its ASGI app, if it has one, and run the app's startup."""
        build = getattr(self.target, "__remora_asgi_app__", None)
        if build is None:
            return
        app = build()
        if inspect.isawaitable(app):
            app = await app
        if app is None:
            raise TypeError(
                f"{self.deployment} has no ASGI app: its builder returned None. Return the app."
            )
        self.lifespan = Lifespan(cast(ASGIApp, app))
        await self.lifespan.startup()
        self.asgi_app = cast(ASGIApp, app)

    @property
    def docs_path(self) -> str:
        """Path of the API docs of a FastAPI app, such as `/docs`; empty without."""
        if getattr(self.asgi_app, "openapi_url", None) is None:
            return ""
        return getattr(self.asgi_app, "docs_url", None) or ""

    # ------------------------------------------------------------------------ while it runs

    async def check_health(self) -> None:
        """Run the user's `check_health`, if there is one; whatever it raises comes out."""
        check = self.hook("check_health")
        if check is not None:
            await call_hook(check)

    async def reconfigure(self, user_config: Any, rank: Any = None) -> None:
        """Hand a `user_config` to the user's object, with the rank if it asks for that.

        Raises:
            ReplicaStartError: there is nothing that could take it.
            Exception: what the user's `reconfigure` raised.
        """
        hook = self.hook("reconfigure")
        if hook is None:
            raise ReplicaStartError(
                f"{self.deployment} has a user_config but no way to take it: add "
                "`def reconfigure(self, user_config)` to the class, or remove user_config."
            )
        arguments = (user_config, rank) if has_parameter(hook, "rank") else (user_config,)
        await call_hook(hook, *arguments)
        self.methods.forget()

    @property
    def wants_its_rank(self) -> bool:
        """Its `reconfigure` is to hear of a new rank."""
        hook = self.hook("reconfigure")
        return hook is not None and has_parameter(hook, "rank")

    async def record(self, name: str) -> dict[str, Any] | None:
        """Run `record_routing_stats` or `record_replica_metadata`; None: the object has none.

        Raises:
            TypeError: it returned no dict.
            Exception: what the user's code raised.
        """
        if self.hook(name) is None:
            return None
        recorded = await self.hook_result(name)
        if not isinstance(recorded, dict):
            raise TypeError(f"{name} must return a dict, not {type(recorded).__name__}")
        return recorded

    async def hook_result(self, name: str) -> object:
        """Run a hook of the user's object; None: there is none of that name."""
        hook = self.hook(name)
        return None if hook is None else await call_hook(hook)

    def kind_of_hook(self, name: str) -> MethodKind | None:
        """How a hook of the user's object runs; None: there is none of that name."""
        hook = self.hook(name)
        return None if hook is None else kind_of(hook)

    def hook(self, name: str) -> Callable[..., Any] | None:
        """A hook of the user's object; None: there is none of that name."""
        if inspect.isroutine(self.target):
            return None
        hook = getattr(self.target, name, None)
        return hook if callable(hook) else None

    # -------------------------------------------------------------------------------- end

    async def destroy(self) -> None:
        """Shut the ASGI app down, then run the user's `__del__`, each once and never again.

        Errors of the user's are logged: nobody waits for an answer here.
        """
        if self._destroyed:
            return
        self._destroyed = True
        if self.lifespan is not None:
            await self._log_errors("the ASGI app's shutdown", self.lifespan.shutdown())
        if not inspect.isroutine(self.target):
            await self._log_errors("__del__", destroy(self.target))

    async def _log_errors(self, what: str, work: Awaitable[object]) -> None:
        try:
            await work
        except (Exception, SystemExit) as error:  # noqa: BLE001 - border: user code
            logger.error("%s: %s failed:\n%s", self.deployment, what, user_traceback(error))
