"""A controller with a fake engine and fake replicas, on virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from remora.config import DeploymentConfig
from remora.control.admin import Admin
from remora.control.controller import Controller
from remora.control.replica_control import Connect
from remora.core.snapshot import Snapshot, patch
from remora.core.state import validate
from remora.testing import FakeEngine, FakeReplicas
from remora.types import DeploymentID
from remora.wire.codec import pack
from remora.wire.control import (
    Ack,
    ApplicationSpec,
    ApplicationStatus,
    DeleteRequest,
    DeploymentSpec,
    DeployRequest,
    Subscription,
)


def app(
    name: str = "default",
    *deployments: DeploymentSpec,
    route_prefix: str | None = "/",
    ingress: str = "",
) -> ApplicationSpec:
    """Describe an application; with no deployments it has one."""
    those = deployments or (deployment(),)
    return ApplicationSpec(
        name=name,
        route_prefix=route_prefix,
        ingress=ingress or those[0].name,
        deployments=those,
    )


def deployment(
    name: str = "Model", version: str = "1", code: bytes = b"code", **options: object
) -> DeploymentSpec:
    """Describe a deployment."""
    config = DeploymentConfig(**options)  # type: ignore[arg-type]
    return DeploymentSpec(name=name, code=code, code_version=version, config=config)


class Rig:
    """One instance as a test sees it; the controller can be killed and started again."""

    def __init__(self, engine: FakeEngine | None = None, *, bound: bool = False) -> None:
        self.engine = engine or FakeEngine()
        self.bound = bound
        self.replicas = FakeReplicas(self.engine)
        self.connect: Connect = self.replicas.connect
        self.controller: Controller
        self.admin: Admin
        self.snapshot = Snapshot()
        #: Called with every snapshot that a router applied.
        self.on_snapshot: list[Callable[[Snapshot], None]] = []
        self._running: asyncio.Task[None] | None = None
        self._router: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start a controller, and a router that follows it."""
        loop = asyncio.get_running_loop()
        self.controller = Controller(
            self.engine,
            connect=self.connect,
            unix=lambda: 1_700_000_000.0 + loop.time(),
            salt="s",
            bound=self.bound,
        )
        self.admin = Admin(self.controller, home="/home", http_url="http://127.0.0.1:8000")
        self._running = asyncio.create_task(self.controller.run())
        self._router = asyncio.create_task(self._follow())
        await self.controller.ready.wait()

    async def stop(self) -> None:
        """Kill the controller; processes and the router's snapshot stay."""
        for task in (self._running, self._router):
            if task is not None:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    async def ended(self) -> None:
        """Wait until the controller ends by itself."""
        assert self._running is not None
        await self._running

    async def _follow(self) -> None:
        subscription = Subscription("router", 1)
        async for change in self.controller.publisher.subscribe(subscription):
            self.snapshot = patch(self.snapshot, change)
            for callback in self.on_snapshot:
                callback(self.snapshot)
            self.controller.publisher.ack(Ack("router", change.version))

    def num_routable(self, name: str = "Model", app_name: str = "default") -> int:
        """How many replicas the router knows."""
        route = self.snapshot.deployments.get(DeploymentID(name, app_name))
        return len(route.replicas) if route is not None else 0

    async def call(self, method: str, body: bytes = b"") -> None:
        """Call a control method that answers nothing."""
        made = self.admin.handlers[method](body)
        assert not hasattr(made, "__aiter__")
        await made

    async def deploy(self, *applications: ApplicationSpec) -> None:
        """Deploy as a client does."""
        await self.call("deploy", pack(DeployRequest(applications)))

    async def delete(self, *names: str) -> None:
        """Delete as a client does."""
        await self.call("delete", pack(DeleteRequest(names)))

    async def status(self, name: str = "default") -> ApplicationStatus | None:
        """Ask for the status of an application."""
        return (await self.admin.status()).applications.get(name)

    async def until(
        self,
        holds: Callable[[ApplicationStatus | None], bool],
        name: str = "default",
        timeout_s: float = 120.0,
    ) -> ApplicationStatus | None:
        """Wait, tick by tick, until the status of an application is as wanted."""
        changed = self.controller.watch()
        last: ApplicationStatus | None = None
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    changed.clear()
                    validate(self.controller.state)
                    last = await self.status(name)
                    if holds(last):
                        return last
                    await changed.wait()
        except TimeoutError:
            raise AssertionError(f"after {timeout_s} s the status is still {last}") from None
        finally:
            self.controller.unwatch(changed)

    async def until_running(self, name: str = "default", timeout_s: float = 120.0) -> None:
        """Wait until an application runs."""
        await self.until(lambda now: now is not None and now.status == "RUNNING", name, timeout_s)

    async def until_settled(self, name: str = "default", timeout_s: float = 120.0) -> None:
        """Wait until an application runs and nothing of before is left."""
        await self.until(
            lambda now: (
                now is not None
                and now.status == "RUNNING"
                and all(
                    set(each.replica_states) <= {"RUNNING"} for each in now.deployments.values()
                )
            ),
            name,
            timeout_s,
        )


@asynccontextmanager
async def rig(engine: FakeEngine | None = None, *, bound: bool = False) -> AsyncIterator[Rig]:
    """A started rig; ends with the block."""
    made = Rig(engine, bound=bound)
    await made.start()
    try:
        yield made
    finally:
        await made.stop()
