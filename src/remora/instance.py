"""Which instance this process works with: found running, or launched and bound to it.

One process uses one instance at a time. It joins the one that runs in its state folder, or
launches one that ends with the process. Talking to the controller goes through `Instance.ask`,
which works with and without a running event loop (scripts and notebooks).

Rules: the only module-level state of the public API is `_current`, held here.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from remora.config import HTTPOptions
from remora.engine.local import launch as local
from remora.engine.local.launch import Launch, Owner, find_owner
from remora.errors import ConfigError, ConnectionLostError, DeployError, InstanceError
from remora.handle import forget_routers
from remora.home import Home
from remora.router.process import forget_instance, instance_home, use_instance

if TYPE_CHECKING:
    from remora.control.client import ControlClient
    from remora.wire.control import ApplicationSpec, ApplicationStatus, InstanceStatus

_log = logging.getLogger("remora")
_T = TypeVar("_T")

#: Seconds until an instance must be up. It takes a fraction of one; a machine under load, many.
START_LIMIT_S = 60.0
#: Seconds that a bound instance has to end when its script does.
EXIT_LIMIT_S = 10.0


class Instance:
    """An instance that this process joined or launched."""

    def __init__(
        self, home: Home, launched: Launch | None, owner: Owner | None, http: HTTPOptions | None
    ) -> None:
        self.home = home
        self.launched = launched
        self._owner = owner
        #: What it was launched with; None: somebody else launched it.
        self.http = http
        self._pid = os.getpid()

    def wait_ready(self) -> str:
        """Wait until its sockets take connections; return the URL of its front door.

        Raises:
            InstanceError: it cannot come up; says why.
        """
        if self.launched is not None:
            return self.launched.wait_ready(START_LIMIT_S).http_url
        assert self._owner is not None
        return self._owner.http_url

    def is_alive(self) -> bool:
        """Its supervisor runs."""
        if self.launched is not None:
            return not self.launched.wait_gone(0.0)
        owner = find_owner(self.home)
        return owner is not None and self._owner is not None and owner.pid == self._owner.pid

    def wait_gone(self, timeout_s: float) -> bool:
        """Wait until its supervisor has ended; False: it has not."""
        if self.launched is not None:
            return self.launched.wait_gone(timeout_s)
        assert self._owner is not None
        try:
            fd = os.pidfd_open(self._owner.pid)
        except ProcessLookupError:
            return True
        import select

        poll = select.poll()
        poll.register(fd, select.POLLIN)
        try:
            return bool(poll.poll(timeout_s * 1000))
        finally:
            os.close(fd)

    def ask(self, question: Callable[[ControlClient], Coroutine[Any, Any, _T]]) -> _T:
        """Ask the controller something, from any thread, with or without a running loop.

        Raises:
            InstanceError: the instance is gone.
            Exception: what the controller answers.
        """

        async def asked() -> _T:
            from remora.control.client import ControlClient

            async with ControlClient(self.home) as client:
                return await question(client)

        self.wait_ready()
        try:
            return run_coroutine(asked())
        except ConnectionLostError as error:
            raise InstanceError(
                f"The controller of the instance in {self.home.root} does not answer: {error}. "
                "`remora status` says how it is."
            ) from error

    def deploy(self, specs: list[ApplicationSpec], wait: bool = True) -> None:
        """Deploy applications and wait until each is RUNNING.

        Raises:
            DeployError: one cannot be brought up; holds the user's traceback.
            InstanceError: the instance went away.
        """
        self.wait_ready()
        run_coroutine(self._deploy(specs, wait))

    async def _deploy(self, specs: list[ApplicationSpec], wait: bool) -> None:
        from remora.control.client import ControlClient

        async with ControlClient(self.home) as client:
            applications = (await client.status()).applications
            before = {name: app.revision for name, app in applications.items()}
            await client.deploy(specs)
        waiting = {spec.name for spec in specs} if wait else set()
        if not waiting:
            return
        async with aclosing(self._watch()) as reports:
            async for report in reports:
                for name in tuple(waiting):
                    app = report.applications.get(name)
                    # An older revision says nothing about this deploy.
                    if app is None or app.revision <= before.get(name, -1):
                        continue
                    if app.status == "DEPLOY_FAILED":
                        raise DeployError(failure_text(app))
                    if app.status == "RUNNING":
                        waiting.discard(name)
                if not waiting:
                    return

    async def _watch(self) -> AsyncGenerator[InstanceStatus, None]:
        """Yield the status now and after every change, over restarts of the controller."""
        from remora.control.client import ControlClient

        async with (
            ControlClient(self.home) as client,
            aclosing(client.watch()) as reports,
        ):
            async for report in reports:
                yield report

    def delete(self, names: list[str], timeout_s: float | None) -> None:
        """Delete applications; those that do not exist are gone already.

        Args:
            names: of the applications.
            timeout_s: seconds to wait until they are gone; None: do not wait.

        Raises:
            TimeoutError: they are not gone yet; they still will be.
        """

        async def gone() -> None:
            async with aclosing(self._watch()) as reports:
                async for report in reports:
                    if not set(names) & set(report.applications):
                        return

        self.ask(lambda client: client.delete(names))
        if timeout_s is None:
            return
        try:
            run_coroutine(asyncio.wait_for(gone(), timeout_s))
        except TimeoutError:
            raise TimeoutError(
                f"Applications {', '.join(names)} are not gone after {timeout_s:g}s; they finish "
                "their ongoing requests. `remora status` shows how far they are."
            ) from None

    def end(self) -> None:
        """End the instance in good order: applications drain first. Forced if need be."""
        try:
            self.ask(lambda client: client.shutdown())
            gone = self.wait_gone(START_LIMIT_S)
        except InstanceError:
            gone = not self.is_alive()
        if not gone:
            if self.launched is not None:
                self.launched.end(EXIT_LIMIT_S)
            elif self._owner is not None:
                local.end(self._owner, EXIT_LIMIT_S)
        if self.launched is not None:
            self.launched.release()

    def end_with_script(self) -> None:
        """End a bound instance quickly, because its script ends."""
        if self.launched is not None and os.getpid() == self._pid:
            self.launched.end(EXIT_LIMIT_S)


def failure_text(app: ApplicationStatus) -> str:
    """Say why an application could not be deployed, each text once. Pure."""
    lines = [f"Deploying application {app.name} failed: {app.message}".rstrip()]
    for deployment in app.deployments.values():
        message = deployment.message.strip()
        bad = deployment.status in ("DEPLOY_FAILED", "UNHEALTHY")
        if bad and message and message not in app.message:
            lines.append(f"Deployment {deployment.name}: {message}")
    return "\n".join(lines)


def run_coroutine(work: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine to its end from plain code, also where a loop runs in this thread.

    In a running loop (a notebook) another thread does it, and this one blocks until it is done.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    result: list[_T] = []
    errors: list[BaseException] = []

    def work_in_thread() -> None:
        try:
            result.append(asyncio.run(work))
        except BaseException as error:  # noqa: BLE001 - border: handed over to the caller
            errors.append(error)

    thread = threading.Thread(target=work_in_thread, name="remora-api", daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return result[0]


# ----------------------------------------------------------------- the one of this process

_current: Instance | None = None
_lock = threading.Lock()


def current_instance() -> Instance | None:
    """The instance that this process uses: its own, or the one of its state folder.

    None: none runs.
    """
    global _current
    with _lock:
        if _current is not None and _current.is_alive():
            return _current
        if _current is not None:
            _leave()
        # A replica or proxy is inside an instance, whatever its environment says.
        home = instance_home() or Home.locate()
        owner = find_owner(home)
        if owner is None:
            return None
        _current = Instance(home, None, owner, None)
        _use(home)
        return _current


def require_instance() -> Instance:
    """The instance that this process uses.

    Raises:
        InstanceError: none runs.
    """
    instance = current_instance()
    if instance is None:
        raise InstanceError(
            f"No instance runs in {Home.locate().root}: call remora.run(app) or remora.start(), or "
            "use the command `remora start`."
        )
    return instance


def begin(http: HTTPOptions | None = None, home: Home | None = None) -> Instance:
    """Find the instance of this process, or launch one bound to it without waiting for it.

    Raises:
        ConfigError: one runs, with other options.
        InstanceError: no process can be started.
    """
    global _current
    found = current_instance()
    if found is not None and (home is None or found.home == home):
        if http is not None:
            refuse_other_options(found, http)
        return found
    with _lock:
        chosen = home or Home.locate()
        options = http or HTTPOptions()
        _current = Instance(chosen, local.launch(chosen, options, bound=True), None, options)
        _use(chosen)
        return _current


def refuse_other_options(running: Instance, wanted: HTTPOptions) -> None:
    """Refuse options that differ from those of a running instance, naming the first.

    Raises:
        ConfigError: it cannot be changed while the instance runs.
    """
    advice = f"the instance in {running.home.root} runs already; shut it down to change this"
    if running.http is not None:
        for name in HTTPOptions.__struct_fields__:
            has, wants = getattr(running.http, name), getattr(wanted, name)
            if has != wants:
                raise ConfigError(f"http_options[{name!r}]", wants, f"is {has!r} and {advice}")
        return
    url = urlsplit(running.wait_ready())
    defaults = HTTPOptions()
    for name in HTTPOptions.__struct_fields__:
        wants = getattr(wanted, name)
        if wants == getattr(defaults, name):
            continue  # whether it was asked for cannot be told
        known = {"host": url.hostname, "port": url.port}
        if name not in known or known[name] != wants:
            has = f"is {known[name]!r} and " if name in known else ""
            raise ConfigError(f"http_options[{name!r}]", wants, f"{has}{advice}")


def end_current() -> bool:
    """End the instance that this process uses; False: there is none."""
    instance = current_instance()
    if instance is None:
        return False
    instance.end()
    with _lock:
        _leave()
    return True


def _use(home: Home) -> None:
    if instance_home() != home:
        use_instance(home, f"script {os.getpid()}")


def _leave() -> None:
    """Forget the instance and all connections to it. Called with the lock held."""
    global _current
    if _current is not None and _current.launched is not None:
        _current.launched.release()
    _current = None
    forget_instance()
    forget_routers()


@atexit.register
def _at_exit() -> None:
    if _current is not None:
        _current.end_with_script()
