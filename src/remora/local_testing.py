"""An instance in one process: `run(app, _local_testing_mode=True)`.

The controller, the replicas and everything between them are those of a real instance, on one
event loop in a thread of this process. What differs is the engine below, whose processes are
tasks. Nothing listens on a port: `remora.testing.asgi_app` is the front door. Each deployment has
one replica.

Rules: nothing about requests, deploys or replicas is decided here.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import socket
import tempfile
import threading
import weakref
from collections.abc import AsyncGenerator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from remora.config import DeploymentConfig
from remora.errors import InstanceError
from remora.home import Home
from remora.instance import Instance
from remora.instance.processes import EXIT_LIMIT_S

if TYPE_CHECKING:
    from remora.wire.control import ApplicationSpec, ApplicationStatus

_log = logging.getLogger("remora")
#: Seconds for the thread to come up.
_START_LIMIT_S = 10.0
_BACKLOG = 1024
#: Options about processes and their places, as if nothing was said.
_NOWHERE: dict[str, Any] = {
    name: getattr(DeploymentConfig(), name)
    for name in (
        "resources",
        "env_vars",
        "runtime_env",
        "label_selector",
        "fallback_selectors",
        "max_replicas_per_node",
        "placement_group_bundles",
        "placement_group_strategy",
        "placement_group_bundle_label_selector",
        "gang_scheduling_config",
    )
}


class LocalTestingInstance(Instance):
    """An instance whose parts are tasks of one loop in this process."""

    is_local_testing = True

    def __init__(self) -> None:
        """Start one; it ends with `shut_down`, or with this process."""
        home = Home(Path(tempfile.mkdtemp(prefix="remora-test-")))
        home.make()
        super().__init__(home, None, None)
        #: What was deployed and not deleted, by name.
        self._specs: dict[str, ApplicationSpec] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._main: asyncio.Task[None] | None = None
        self._started: Future[None] = Future()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="remora-local", daemon=True)
        self._thread.start()

    # ------------------------------------------------------------------------------ its thread

    def _run(self) -> None:
        giving_up: threading.Timer | None = None
        try:
            import uvloop

            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                self._loop = runner.get_loop()
                try:
                    runner.run(self._serve())
                finally:
                    # What follows waits for every task and thread, and user code may never end.
                    giving_up = threading.Timer(EXIT_LIMIT_S, self._leave_behind)
                    giving_up.daemon = True
                    giving_up.start()
        except asyncio.CancelledError:
            pass  # told to end at once
        except BaseException as error:  # noqa: BLE001 - border: a thread's main
            if not self._started.done():
                self._started.set_exception(error)
            else:
                _log.exception("The instance for local testing has failed")
        finally:
            if giving_up is not None:
                giving_up.cancel()
            self._set_ended()

    def _leave_behind(self) -> None:
        if self._ended.is_set() or self._loop is None:
            return
        names = sorted({_name_of(task) for task in asyncio.all_tasks(self._loop)})
        _log.warning(
            "The instance for local testing has ended but for its thread, which is left behind: "
            "after %g s something still runs%s. A handler must not swallow CancelledError, nor "
            "block the event loop.",
            EXIT_LIMIT_S,
            f" ({', '.join(names)})" if names else "",
        )
        self._set_ended()

    def _set_ended(self) -> None:
        shutil.rmtree(self.home.root, ignore_errors=True)
        self._ended.set()

    async def _serve(self) -> None:
        from remora.control.admin import Admin
        from remora.control.controller import Controller
        from remora.engine.in_process import InProcessEngine
        from remora.replica.main import serve_in_shared_process
        from remora.transport.control import ControlConnection
        from remora.transport.listener import listen

        self._main = asyncio.current_task()
        engine = InProcessEngine(self.home, serve_in_shared_process)
        controller = Controller(engine, salt=os.urandom(2).hex(), bound=True)
        admin = Admin(controller, home=str(self.home.root))
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(os.fspath(self.home.controller_socket))
        listener.listen(_BACKLOG)
        connections: weakref.WeakSet[ControlConnection] = weakref.WeakSet()

        def accept() -> ControlConnection:
            connection = ControlConnection(admin.handlers)
            connections.add(connection)
            return connection

        server = await listen(listener, accept)
        self._started.set_result(None)
        try:
            await controller.run()
        finally:
            server.close()
            await engine.shutdown()
            # The end of a process would close them; a loop has to be left in order.
            for connection in list(connections):
                connection.close()

    # ---------------------------------------------------------------------------- its processes

    @property
    def joined(self) -> bool:
        """Never: it belongs to this process."""
        return False

    @property
    def pid(self) -> int:
        """Of this process."""
        return os.getpid()

    def wait_ready(self) -> str:
        """Wait until it is up; there is no URL.

        Raises:
            InstanceError: it could not come up.
        """
        try:
            self._started.result(_START_LIMIT_S)
        except Exception as error:
            raise InstanceError(f"The instance for local testing cannot start: {error}") from error
        return ""

    def is_alive(self) -> bool:
        """Its thread runs, in this process and not in the parent of a fork."""
        return os.getpid() == self._launcher_pid and not self._ended.is_set()

    async def wait_gone(self) -> None:
        """Wait until its thread has ended."""
        await asyncio.to_thread(self._ended.wait)

    def was_killed(self) -> bool:
        """Never: it ends with this process."""
        return False

    def force_end(self, timeout_s: float = EXIT_LIMIT_S) -> None:
        """End it without draining."""
        if self.is_alive() and self._loop is not None and self._main is not None:
            self._loop.call_soon_threadsafe(self._main.cancel)
            if not self._ended.wait(timeout_s):
                self._leave_behind()

    def abandon(self) -> None:
        """Let go of it: it ends."""
        self.force_end()

    def release(self) -> None:
        """Let go of it: it ends."""
        self.force_end()

    # ------------------------------------------------------------------------- its applications

    async def deploy(
        self, specs: Sequence[ApplicationSpec]
    ) -> AsyncGenerator[dict[str, ApplicationStatus], None]:
        """Deploy applications; what only processes can have is left out, with a warning.

        A test need not know what others have left: an earlier application gives up a route that is asked for
        anew, and is reached by its handles.

        Raises:
            RemoraError: the deploy was refused.
        """
        wanted = [_without_processes(spec) for spec in specs]
        together = [*_giving_up_routes(self._specs, wanted), *wanted]
        async with aclosing(super().deploy(together)) as reports:
            async for report in reports:
                self._specs.update({spec.name: spec for spec in together})
                yield report

    async def delete(self, names: Sequence[str]) -> None:
        """Delete applications; they are not gone yet.

        Raises:
            RemoraError: as `Instance.delete`.
        """
        await super().delete(names)
        for name in names:
            self._specs.pop(name, None)


def _name_of(task: asyncio.Task[object]) -> str:
    """What a task runs, from its outermost coroutine to where it waits. Pure."""
    names = []
    coroutine: Any = task.get_coro()
    while hasattr(coroutine, "cr_code"):
        names.append(coroutine.__qualname__)
        coroutine = coroutine.cr_await
    return " > ".join(names)


def _giving_up_routes(
    running: Mapping[str, ApplicationSpec], wanted: Sequence[ApplicationSpec]
) -> list[ApplicationSpec]:
    """Those that run and stay, without the routes that others want now. Pure."""
    names = {spec.name for spec in wanted}
    routes = {spec.route_prefix for spec in wanted} - {None}
    return [
        msgspec.structs.replace(spec, route_prefix=None)
        for spec in running.values()
        if spec.name not in names and spec.route_prefix in routes
    ]


def _without_processes(application: ApplicationSpec) -> ApplicationSpec:
    deployments = []
    for one in application.deployments:
        config = one.config
        if config.autoscaling_config is not None:
            _log.warning(
                "Local testing mode: autoscaling of deployment %r has no effect; it has one replica.",
                one.name,
            )
        bare = msgspec.structs.replace(config, **_NOWHERE)
        if bare != config:
            _log.warning(
                "Local testing mode: resources, places and runtime_env of deployment %r have no effect, "
                "because all replicas share this process.",
                one.name,
            )
        # One copy each: copies of a class in one process would share its FastAPI app.
        config = msgspec.structs.replace(bare, num_replicas=1, autoscaling_config=None)
        deployments.append(msgspec.structs.replace(one, config=config))
    return msgspec.structs.replace(application, deployments=tuple(deployments))
