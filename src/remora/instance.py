"""One instance, as a program outside of it sees it: found running, or launched.

What the public functions and the command line do to an instance is done here, once; those two
only choose how to wait and what to print.

Rules: prints nothing, holds no module-level state. Modules that need an event loop are imported
when they are first used: a command launches the supervisor before it pays for them.

Concurrency: the coroutines may run on any loop, also each on another one.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Self

from remora.config import ADMIN, LOCAL_ENGINE, AdminOptions, EngineOptions, HTTPOptions
from remora.engine import launch as local
from remora.engine.launch import Launch, Owner, find_owner, left_behind
from remora.errors import InstanceError
from remora.home import Home
from remora.options.logging import LoggingConfig
from remora.options.resources import AS_FOUND, MachineOptions
from remora.wire.grpc import GrpcSetup, digest

if TYPE_CHECKING:
    from remora.wire.control import (
        ApplicationSpec,
        ApplicationStatus,
        ConfigRequest,
        DeploymentStatus,
        InstanceStatus,
    )
    from remora.wire.health import ControllerHealth
    from remora.wire.plan import Plan
    from remora.wire.releases import Release
    from remora.wire.scaling import ScalingDetail

#: Seconds until an instance must be up. It takes a fraction of one; a machine under load, many.
START_LIMIT_S = 60.0
#: Seconds that an instance has to end by itself before it is killed.
EXIT_LIMIT_S = 10.0
#: Seconds that the controller has to say that it heard of a shutdown. The draining comes after.
_HEARD_LIMIT_S = 10.0
#: How a message of a deployment begins that is on its way; the counts are told elsewhere.
_COUNT = re.compile(r"^\d+ of \d+ replicas are up and running\.\s*")
#: Statuses of an application or deployment whose message somebody must read.
TROUBLE = frozenset({"DEPLOY_FAILED", "UNHEALTHY"})


class Instance:
    """An instance that ran already, or one that this program launched."""

    #: All of it is inside this process (`local_testing`).
    is_local_testing = False

    def __init__(
        self,
        home: Home,
        launched: Launch | None,
        owner: Owner | None,
        http: HTTPOptions | None = None,
        grpc: GrpcSetup | None = None,
        engine: str = "local",
    ) -> None:
        """Take hold of an instance; `find` and `launch` are the usual ways.

        Args:
            home: its state folder.
            launched: the supervisor that this program started; None: somebody else did.
            owner: who holds the folder, if somebody else does.
            http: what it was launched with; None: that is not known.
            grpc: what it was launched with for gRPC.
            engine: that it was launched on.
        """
        self.home = home
        self.engine = engine if owner is None else owner.engine
        self.http = http
        #: What its machine was said to have; None: that is not known.
        self.machine: MachineOptions | None = None
        self._grpc = grpc
        self._launched = launched
        self._owner = owner
        self._launcher_pid = os.getpid()

    @classmethod
    def find(cls, home: Home) -> Self | None:
        """Find the instance of a state folder; None: none runs there."""
        owner = find_owner(home)
        return None if owner is None else cls(home, None, owner)

    @classmethod
    def launch(
        cls,
        home: Home,
        http: HTTPOptions,
        *,
        bound: bool,
        grpc: GrpcSetup | None = None,
        machine: MachineOptions = AS_FOUND,
        engine: EngineOptions = LOCAL_ENGINE,
        admin: AdminOptions = ADMIN,
        logging: LoggingConfig | None = None,
    ) -> Self:
        """Launch one without waiting for it.

        Args:
            home: its state folder.
            http: the front door.
            bound: True: it ends with this process, however that ends.
            grpc: the front door for gRPC; None: there is none.
            machine: what this machine is said to have.
            engine: what runs its processes.
            admin: where the REST API listens.
            logging: how its processes log; None: the defaults.

        Raises:
            InstanceError: no process can be started here.
            ModuleNotFoundError: the engine is not installed.
        """
        require_engine(engine.engine)
        launched = local.launch(
            home,
            http,
            bound,
            grpc=grpc,
            machine=machine,
            engine=engine,
            admin=admin,
            logging=logging,
        )
        made = cls(home, launched, None, http, grpc, engine.engine)
        made.machine = machine
        return made

    # ---------------------------------------------------------------------- its processes

    @property
    def joined(self) -> bool:
        """Somebody else launched it; of one in a cluster that is known once it is ready."""
        return self._launched is None or self._launched.joined

    @property
    def pid(self) -> int:
        """Of its supervisor."""
        return self._launched.pid if self._launched is not None else self._known_owner.pid

    @property
    def _known_owner(self) -> Owner:
        assert self._owner is not None
        return self._owner

    def wait_ready(self) -> str:
        """Wait until it is up; return the URL of its front door, empty without one.

        Raises:
            InstanceError: it cannot come up; says why and what to do.
        """
        if self._launched is not None:
            return self._launched.wait_ready(START_LIMIT_S).http_url
        return self._known_owner.http_url

    @property
    def grpc_address(self) -> str:
        """`host:port` where it serves gRPC, once it is ready; empty without."""
        if self._launched is not None:
            return self._launched.wait_ready(START_LIMIT_S).grpc_address
        return self._known_owner.grpc_address

    @property
    def grpc_digest(self) -> str:
        """Tells its gRPC setup from others; empty without gRPC."""
        return digest(self._grpc) if self._launched is not None else self._known_owner.grpc_digest

    def is_alive(self) -> bool:
        """Its supervisor runs."""
        if self._launched is not None:
            return not self._launched.wait_gone(0.0)
        owner = find_owner(self.home)
        return owner is not None and owner.pid == self._known_owner.pid

    async def wait_gone(self) -> None:
        """Wait until its supervisor has ended."""
        try:
            fd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        # A pidfd becomes readable when its process ends.
        loop.add_reader(fd, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(fd)
            os.close(fd)
        if self._launched is not None:
            # Our child: the kernel keeps what is left of it until somebody asks.
            self._launched.wait_gone(0.0)

    def was_killed(self) -> bool:
        """Say of one that has ended whether it was killed; False: it ended in good order."""
        left = left_behind(self.home)
        return left is not None and left.pid == self.pid

    def force_end(self, timeout_s: float = EXIT_LIMIT_S) -> None:
        """End it without asking its controller; kill it after `timeout_s`.

        A process that was forked off the launching one leaves it alone.
        """
        if self._launched is None:
            local.end(self._known_owner, timeout_s)
        elif os.getpid() == self._launcher_pid:
            self._launched.end(timeout_s)

    def abandon(self) -> None:
        """Let go of it; returns when it has ended, if it is bound to this process."""
        if self._launched is not None:
            self._launched.abandon()

    def release(self) -> None:
        """Let go of it: a bound instance ends, another one stays."""
        if self._launched is not None:
            self._launched.release()

    # ------------------------------------------------------------------- its applications

    async def status(self) -> InstanceStatus:
        """Ask how everything is.

        Raises:
            InstanceError: the controller does not answer.
        """
        from remora.control.client import ControlClient

        async with ControlClient(self.home) as client:
            return await client.status()

    async def controller_health(self) -> ControllerHealth:
        """Ask how the controller itself is.

        Raises:
            InstanceError: the controller does not answer.
        """
        from remora.control.client import ControlClient

        async with ControlClient(self.home) as client:
            return await client.health()

    async def scaling(self) -> tuple[ScalingDetail, ...]:
        """Ask how every deployment is scaled, and why.

        Raises:
            InstanceError: the controller does not answer.
        """
        from remora.control.client import ControlClient

        async with ControlClient(self.home) as client:
            return await client.scaling(past=True)

    async def watch(self) -> AsyncGenerator[InstanceStatus, None]:
        """Yield the status now and after every change; end when the instance has ended.

        A controller that restarts is waited for.

        Raises:
            InstanceError: the instance runs, and nobody answers.
        """
        from remora.control.client import ControlClient

        try:
            async with (
                ControlClient(self.home) as client,
                aclosing(client.watch()) as statuses,
            ):
                async for status in statuses:
                    yield status
        except InstanceError:
            # The socket goes a moment before the supervisor does.
            try:
                await asyncio.wait_for(self.wait_gone(), EXIT_LIMIT_S)
            except TimeoutError:
                pass
            else:
                return
            raise

    async def deploy(
        self, specs: Sequence[ApplicationSpec]
    ) -> AsyncGenerator[dict[str, ApplicationStatus], None]:
        """Deploy applications; yield how these are, from this deploy on, at every change.

        The first report comes as soon as the deploy is accepted; the reports do not end by
        themselves.

        Raises:
            RemoraError: the deploy was refused.
            InstanceError: the instance has ended.
        """
        from remora.control.client import ControlClient

        async with ControlClient(self.home) as client:
            before = (await client.status()).applications
            await client.deploy(specs)
        names = {spec.name for spec in specs}
        async with aclosing(self.watch()) as statuses:
            async for status in statuses:
                yield {
                    name: app
                    for name, app in status.applications.items()
                    if name in names and _is_newer(app, before.get(name))
                }
        raise InstanceError(
            f"The instance in {self.home.root} ended while {', '.join(sorted(names))} came up; "
            f"see {self.home.logs}."
        )

    async def submit(self, request: ConfigRequest) -> int:
        """Hand in a config; returns the number of its release. `watch` tells how it goes.

        Raises:
            RemoraError: it was refused.
            InstanceError: the instance has ended.
        """
        from remora.control.client import ControlClient

        async with ControlClient(self.home) as client:
            return await client.submit(request)

    async def plan(self, request: ConfigRequest) -> Plan:
        """Ask what a config would change; its code is imported for that.

        Raises:
            RemoraError: it would be refused.
        """
        from remora.control.client import ControlClient

        async with ControlClient(self.home) as client:
            return await client.plan(request)

    async def releases(self) -> list[Release]:
        """Ask what was deployed when, oldest first."""
        from remora.control.client import ControlClient

        async with ControlClient(self.home) as client:
            return await client.releases()

    async def roll_back(self, number: int) -> int:
        """Go back to what a release said; returns the number of the new release.

        Raises:
            ReleaseError: there is no such release, or it cannot come back.
        """
        from remora.control.client import ControlClient

        async with ControlClient(self.home) as client:
            return await client.roll_back(number)

    async def configs(self) -> dict[str, bytes]:
        """What was declared of each application, as JSON, by name.

        Raises:
            InstanceError: the controller does not answer.
        """
        from remora.control.client import ControlClient

        async with ControlClient(self.home) as client:
            return await client.configs()

    async def delete(self, names: Sequence[str]) -> None:
        """Begin to delete applications; those that do not exist are gone already.

        Raises:
            InstanceError: the controller does not answer.
        """
        from remora.control.client import ControlClient

        async with ControlClient(self.home) as client:
            await client.delete(names)

    async def wait_deleted(self, names: Sequence[str]) -> None:
        """Wait until applications are gone, whose ongoing requests finish first."""
        async with aclosing(self.watch()) as statuses:
            async for status in statuses:
                if status.applications.keys().isdisjoint(names):
                    return

    async def shut_down(self) -> bool:
        """End it in good order: ongoing requests finish first, for as long as they may.

        Returns:
            True once it is gone; False: the controller did not answer, and it was ended without.
        """
        from remora.control.client import ControlClient

        heard = True
        try:
            async with asyncio.timeout(_HEARD_LIMIT_S):
                async with ControlClient(self.home) as client:
                    await client.shutdown()
        except (InstanceError, TimeoutError):
            heard = not self.is_alive()
            if not heard:
                await asyncio.to_thread(self.force_end)
        await self.wait_gone()
        return heard


def require_engine(engine: str) -> None:
    """See that an engine is installed, before anything is started.

    Raises:
        ModuleNotFoundError: it is not; says how to install it.
    """
    if engine == "ray" and importlib.util.find_spec("ray") is None:
        raise ModuleNotFoundError(
            "The engine 'ray' needs Ray, which is not installed: pip install 'remora[ray]'.",
            name="ray",
        )


def _is_newer(now: ApplicationStatus, before: ApplicationStatus | None) -> bool:
    """What an application was like before a deploy says nothing about that deploy. Pure."""
    return before is None or (now.revision, now.last_deployed_time_s) != (
        before.revision,
        before.last_deployed_time_s,
    )


def own_message(status: ApplicationStatus) -> str:
    """Return an application's message, unless its deployments' messages say the same. Pure."""
    message = status.message.strip()
    for deployment in status.deployments.values():
        part = deployment.message.strip()
        if part and (part in message or message in part):
            return ""
    return message


def awaited(deployment: DeploymentStatus) -> str:
    """Say in one line what keeps a deployment from its target; empty: nothing unusual. Pure."""
    if deployment.status in {"HEALTHY", *TROUBLE} or deployment.status_trigger == "DELETING":
        return ""
    lines = _COUNT.sub("", deployment.message.strip()).splitlines()
    # Further lines are a traceback. It comes whole with the failure, should it come to that.
    return lines[0].rstrip(" :") if lines else ""


def failure_text(status: ApplicationStatus) -> str:
    """Return why an application failed, each reason once. Pure."""
    reasons = [
        f"{one.name}: {one.message.strip()}"
        for one in status.deployments.values()
        if one.status in TROUBLE and one.message.strip()
    ]
    if own := own_message(status):
        reasons.insert(0, own)
    return "\n".join(reasons) or "no reason was given; see the logs"
