"""Instances under test: started, deployed to, looked at and ended."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests import engines
from tests.e2e.processes import MARK, kill, marked, marking, title
from tests.e2e.waiting import until, until_async, until_true

from remora.build.graph import build
from remora.config import AdminOptions, EngineOptions, HTTPOptions
from remora.control.client import ControlClient
from remora.deployment import Application
from remora.engine.launch import Launch, LaunchSetup, launch
from remora.errors import ConnectionLostError
from remora.handle import DeploymentHandle, forget_routers
from remora.home import Home
from remora.options.resources import AS_FOUND, MachineOptions
from remora.router.process import forget_instance, use_instance
from remora.wire.control import ApplicationStatus, InstanceStatus
from remora.wire.grpc import GrpcSetup

REPOSITORY = Path(__file__).resolve().parents[2]
REMORA = str(Path(sys.executable).parent / "remora")
#: Seconds that a settled status may take on a machine that runs other tests as well.
SETTLE_S = 20.0
_SETTLED = ("RUNNING", "DEPLOY_FAILED", "UNHEALTHY")

Condition = Callable[[InstanceStatus], Any]


#: The REST API has its Unix socket, and no test takes the port that all would share.
NO_PORT = AdminOptions(host=None)


class Instance:
    """One instance in a state folder of its own; it ends with the test, not with this process."""

    def __init__(
        self,
        folder: Path,
        http: HTTPOptions,
        grpc: GrpcSetup | None = None,
        machine: MachineOptions = AS_FOUND,
        admin: AdminOptions = NO_PORT,
        engine: EngineOptions | None = None,
    ) -> None:
        self.home = Home(folder)
        with marking() as self.mark:
            self.launched: Launch = launch(
                self.home,
                LaunchSetup(http, grpc, machine, engine or engines.chosen(), admin),
                bound=False,
            )
        self._ended = False
        ready = self.launched.wait_ready(engines.patient(SETTLE_S))
        self.url = ready.http_url
        self.grpc_address = ready.grpc_address
        self.pid = ready.pid

    # -- asking ------------------------------------------------------------------------------

    async def status(self) -> InstanceStatus:
        """What the controller knows."""
        async with ControlClient(self.home) as client:
            return await client.status()

    async def wait(self, condition: Condition, what: str, timeout_s: float = SETTLE_S) -> Any:
        """Wait until `condition` of the status is true, over restarts of the controller."""

        async def look() -> Any:
            try:
                return condition(await self.status())
            except ConnectionLostError:
                return None

        return await until_async(look, what, timeout_s)

    async def app(self, name: str) -> ApplicationStatus:
        """One application."""
        return (await self.status()).applications[name]

    async def pids(self, name: str) -> set[int]:
        """The running replicas of an application."""
        return running_pids(await self.status(), name)

    async def replicas(self, name: str, number: int, without: set[int] | None = None) -> set[int]:
        """Wait until exactly `number` replicas run, and none of `without` does."""

        def found(status: InstanceStatus) -> set[int] | None:
            pids = running_pids(status, name)
            return pids if len(pids) == number and not pids & (without or set()) else None

        pids: set[int] = await self.wait(found, f"{number} replicas of {name} run")
        return pids

    # -- doing -------------------------------------------------------------------------------

    async def deploy(
        self,
        target: Application,
        name: str = "default",
        *,
        route: str | None = "/",
        code_version: str | None = None,
        external_scaler: bool = False,
    ) -> ApplicationStatus:
        """Deploy and wait until it is settled, well or not."""
        spec = build(
            target, name, route, code_version=code_version, external_scaler=external_scaler
        )
        async with ControlClient(self.home) as client:
            before = (await client.status()).applications.get(name)
            await client.deploy([spec])
        revision = -1 if before is None else before.revision

        def settled(status: InstanceStatus) -> ApplicationStatus | None:
            app = status.applications.get(name)
            done = app is not None and app.revision > revision and app.status in _SETTLED
            return app if done else None

        status: ApplicationStatus = await self.wait(settled, f"{name} is settled")
        return status

    async def run(self, target: Application, name: str, *, routed: bool = True) -> str:
        """Deploy what is to work; returns its URL."""
        app = await self.deploy(target, name, route=f"/{name}" if routed else None)
        assert app.status == "RUNNING", app
        return f"{self.url}/{name}"

    async def delete(self, name: str) -> None:
        """Delete an application and wait until it is gone."""
        async with ControlClient(self.home) as client:
            await client.delete([name])
        await self.wait(lambda status: name not in status.applications, f"{name} is gone")

    @asynccontextmanager
    async def running(self, target: Application, name: str) -> AsyncIterator[str]:
        """Serve `target` at `/name` for the `with` block; the URL is its value."""
        await self.run(target, name)
        async with self.deleting(name) as url:
            yield url

    @asynccontextmanager
    async def deleting(self, name: str) -> AsyncIterator[str]:
        """Delete an application at the end of the `with` block; its URL is the value."""
        try:
            yield f"{self.url}/{name}"
        finally:
            await self.delete(name)

    def handle(self, deployment: str, name: str) -> DeploymentHandle[Any]:
        """A handle of this process, which is then in this instance."""
        use_instance(self.home, "tests")
        return DeploymentHandle(deployment, name)

    # -- the end -----------------------------------------------------------------------------

    def members(self) -> list[int]:
        """Every living process that this instance or anything in it started."""
        return marked(self.mark)

    def own(self) -> list[int]:
        """Those of `members` that are Remora's; on Ray it has others beside it."""
        members = self.members()
        return [pid for pid in members if not engines.is_ray() or title(pid).startswith("remora: ")]

    def log(self) -> str:
        """What its processes logged and printed, but for requests."""
        files = sorted(self.home.logs.glob("*.log"))
        return "".join(
            each.read_text(errors="replace")
            for each in files
            if not each.name.startswith("access-")
        )

    async def logged(self, text: str) -> None:
        """Wait until the log says something: it is written a moment later."""
        await until_true(lambda: text in self.log(), f"the log has {text!r}")

    def end(self) -> None:
        """End it in good order, and fail when anything is left. The second time: nothing."""
        if self._ended:
            return
        self._ended = True
        forget_instance()
        forget_routers()
        if self.launched.wait_gone(0.0):
            self.launched.release()
        else:
            try:
                asyncio.run(self._shutdown())
                until(lambda: self.launched.wait_gone(0.0), "the supervisor ends", SETTLE_S)
            finally:
                self.launched.end(2.0)
        require_none_left(self.mark)

    async def _shutdown(self) -> None:
        async with ControlClient(self.home) as client:
            await client.shutdown()


def running_pids(status: InstanceStatus, name: str) -> set[int]:
    """The pids of an application's running replicas. Pure."""
    app = status.applications.get(name)
    return {
        replica.pid
        for deployment in (app.deployments.values() if app else ())
        for replica in deployment.replicas
        if replica.state == "RUNNING" and replica.pid
    }


def require_none_left(mark: str, timeout_s: float = 2.0) -> None:
    """Fail when a marked process still lives; end it, so that only this test fails."""
    try:
        until(lambda: not marked(mark), "no process is left", timeout_s)
    except AssertionError as error:
        left = [(pid, Path(f"/proc/{pid}/cmdline").read_bytes()[:80]) for pid in marked(mark)]
        for pid, _ in left:
            kill(pid)
        raise AssertionError(f"{error}: {left}") from None


class Command:
    """A command of a user, started in a group of its own, its output kept in a file.

    A file rather than a pipe: nobody has to read it for the command to go on.
    """

    def __init__(
        self,
        words: Sequence[str],
        folder: Path,
        home: Path,
        environment: Mapping[str, str] | None = None,
        **popen: Any,
    ) -> None:
        self._out = folder / f"out-{os.urandom(4).hex()}.txt"
        self.home = Home(home)
        self.mark = os.urandom(8).hex()
        env = {**os.environ, "REMORA_HOME": str(home), MARK: self.mark, **(environment or {})}
        # Unlike the tests, a script has no source tree of ours on its path.
        env["PYTHONPATH"] = str(REPOSITORY / "src")
        with self._out.open("wb") as out:
            self.process = subprocess.Popen(
                list(words),
                cwd=folder,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                **popen,
            )

    @property
    def output(self) -> str:
        """All it printed so far."""
        return self._out.read_text(errors="replace")

    def wait_output(self, text: str, timeout_s: float = SETTLE_S) -> str:
        """Wait until it has printed `text`; returns all it printed."""

        def printed() -> str | None:
            output = self.output
            if text in output:
                return output
            assert self.process.poll() is None, f"ended with {self.process.poll()}:\n{output}"
            return None

        try:
            found = until(printed, f"{text!r} is printed", timeout_s)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.output}") from None
        assert found is not None
        return found

    def wait_url(self) -> str:
        """Wait until it says where it serves."""
        output = self.wait_output("ready at http://")
        return output.partition("ready at ")[2].split()[0].rstrip("/")

    def wait(self, timeout_s: float = SETTLE_S) -> int:
        """Wait for its end; returns its exit status."""
        return self.process.wait(engines.patient(timeout_s))

    def end(self) -> None:
        """See that neither it nor anything it started is left."""
        for pid in marked(self.mark):
            kill(pid)
        self.process.wait(5.0)
        until(lambda: not marked(self.mark), "all it started is gone", 5.0)
