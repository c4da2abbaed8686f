"""How other processes talk to the controller: the public API, the command line, the admin API.

A controller that restarts is waited for: its socket stays, held by the engine, so a connection
is made at once and answered when the new one is there.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from types import TracebackType
from typing import Self, TypeVar

import msgspec

from remora.errors import ConnectionLostError, InstanceError
from remora.home import Home
from remora.observe.metrics import render
from remora.transport.channel import Channel, connect
from remora.transport.control import call_control, stream_control
from remora.transport.way_back import see_to_socket
from remora.types import Seconds
from remora.wire.control import (
    Accepted,
    ApplicationSpec,
    ConfigRequest,
    Configs,
    DeleteRequest,
    DeployRequest,
    InstanceStatus,
    Story,
    StoryRequest,
)
from remora.wire.health import ControllerHealth
from remora.wire.metrics import MetricsReport, MetricsRequest
from remora.wire.plan import Plan
from remora.wire.releases import Release, Releases, RollbackRequest
from remora.wire.scaling import (
    CapacityRequest,
    ScaleRequest,
    ScalingDetail,
    ScalingDetails,
    ScalingRequest,
)

T = TypeVar("T")

#: How long a controller may take to come back; it needs well under a second.
RECONNECT_S: Seconds = 10.0
_BETWEEN_TRIES_S: Seconds = 0.05


class ControlClient:
    """The controller of one instance, from outside.

    Concurrency: one event loop. Use it as `async with ControlClient(home) as client`.
    """

    def __init__(self, home: Home, *, reconnect_s: Seconds = RECONNECT_S) -> None:
        """Make a client; it connects when it is first used.

        Args:
            home: the instance.
            reconnect_s: how long to wait for a controller that restarts, >= 0.
        """
        self._home = home
        self._reconnect_s = reconnect_s
        self._channel: Channel | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    async def deploy(self, applications: Iterable[ApplicationSpec]) -> int:
        """Deploy applications; returns the number of the release once it is accepted and saved.

        Deploying the same thing again changes nothing, so a controller that restarts meanwhile
        is asked again.

        Raises:
            InstanceError: no instance, or it does not come back.
            RemoraError: refused; nothing has changed.
        """
        return await self._accepted("deploy", DeployRequest(tuple(applications)))

    async def submit(self, request: ConfigRequest) -> int:
        """Hand in a config; returns the number of its release once it is accepted and saved.

        Its code is imported after that: `watch` tells how it goes.

        Raises:
            InstanceError: no instance, or it does not come back.
            RemoraError: refused; nothing has changed.
        """
        return await self._accepted("submit", request)

    async def plan(self, request: ConfigRequest) -> Plan:
        """Ask what a config would change; its code is imported for that.

        Raises:
            InstanceError: no instance, or it does not come back.
            RemoraError: it would be refused.
        """
        return await self._call("plan", request, Plan)

    async def releases(self) -> list[Release]:
        """Ask what was deployed when, oldest first.

        Raises:
            InstanceError: no instance, or it does not come back.
        """
        return list((await self._call("releases", None, Releases)).releases)

    async def roll_back(self, number: int) -> int:
        """Go back to what a release said; returns the number of the new release.

        A controller that restarts meanwhile is asked again, and goes back once.

        Raises:
            InstanceError: no instance, or it does not come back.
            ReleaseError: there is no such release, or it cannot come back.
        """
        return await self._accepted("rollback", RollbackRequest(number, uuid.uuid4().hex))

    async def configs(self) -> dict[str, bytes]:
        """What was declared of each application, as JSON, by name.

        Raises:
            InstanceError: no instance, or it does not come back.
        """
        return (await self._call("configs", None, Configs)).applications

    async def _accepted(self, method: str, request: msgspec.Struct) -> int:
        return (await self._call(method, request, Accepted)).release

    async def delete(self, names: Iterable[str]) -> None:
        """Begin to delete applications; `watch` tells when they are gone.

        Raises:
            InstanceError: no instance, or it does not come back.
        """
        await self._call("delete", DeleteRequest(tuple(names)))

    async def shutdown(self) -> None:
        """Begin to delete everything and to end the instance.

        Raises:
            InstanceError: no instance.
        """
        await self._call("shutdown")

    async def status(self) -> InstanceStatus:
        """Ask how everything is.

        Raises:
            InstanceError: no instance, or it does not come back.
        """
        return await self._call("status", None, InstanceStatus)

    async def health(self) -> ControllerHealth:
        """Ask how the controller itself is.

        Raises:
            InstanceError: no instance, or it does not come back.
        """
        return await self._call("health", None, ControllerHealth)

    async def metrics(self) -> str:
        """Ask what all processes count, as Prometheus reads it.

        Raises:
            InstanceError: no instance, or it does not come back.
        """
        found = await self._call("metrics", MetricsRequest(), MetricsReport)
        return render(found.families)

    async def story(self, replica_id: str) -> str:
        """Ask what happened to a replica, living or lately gone: text for people.

        Raises:
            InstanceError: no instance, or it does not come back.
            EngineError: nothing is known of that replica.
        """
        return (await self._call("story", StoryRequest(replica_id), Story)).text

    async def scale(self, app_name: str, deployment: str, num_replicas: int) -> None:
        """Set a number of replicas from outside; returns when it is accepted and saved.

        Raises:
            UnknownTargetError: no such application or deployment.
            ExternalScalerDisabledError: it is not scaled from outside, or is being deleted.
            ConfigError: the number is negative.
            InstanceError: no instance, or it does not come back.
        """
        await self._call("scale", ScaleRequest(app_name, deployment, num_replicas))

    async def set_capacity(self, percent: float | None) -> None:
        """Switch on a share of every deployment, 0..100 per cent; None: all of it.

        Raises:
            ConfigError: it is no such share.
            InstanceError: no instance, or it does not come back.
        """
        await self._call("capacity", CapacityRequest(percent))

    async def scaling(
        self, app_name: str | None = None, deployment: str | None = None, *, past: bool = False
    ) -> tuple[ScalingDetail, ...]:
        """Ask how deployments are scaled, and why: of all, of an application, or one.

        Args:
            app_name: only of this application.
            deployment: only of this deployment.
            past: with the decisions of controllers before this one.

        Raises:
            UnknownTargetError: no such application or deployment.
            InstanceError: no instance, or it does not come back.
        """
        request = ScalingRequest(app_name, deployment, past)
        return (await self._call("scaling", request, ScalingDetails)).deployments

    async def watch(self) -> AsyncGenerator[InstanceStatus, None]:
        """Yield the status now and after every change; goes on after a controller restart.

        Raises:
            InstanceError: no instance, or it has ended.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._reconnect_s
        while True:
            channel = await self._connected()
            try:
                async with aclosing(
                    stream_control(channel, "watch", None, InstanceStatus, unpickle=True)  # type: ignore[type-var]
                ) as statuses:
                    async for status in statuses:
                        yield status
                        deadline = loop.time() + self._reconnect_s
            except ConnectionLostError as error:
                if loop.time() >= deadline:
                    raise self._missing(str(error)) from error
            self.close()
            await asyncio.sleep(_BETWEEN_TRIES_S)

    async def _call(
        self, method: str, body: msgspec.Struct | None = None, reply: type[T] | None = None
    ) -> T:
        """Make a call, and make it again while the controller restarts."""
        deadline = asyncio.get_running_loop().time() + self._reconnect_s
        while True:
            channel = await self._connected()
            try:
                return await call_control(channel, method, body, reply, unpickle=True)
            except ConnectionLostError as error:
                self.close()
                if asyncio.get_running_loop().time() >= deadline:
                    raise self._missing(str(error)) from error
            await asyncio.sleep(_BETWEEN_TRIES_S)

    async def _connected(self) -> Channel:
        if self._channel is not None and self._channel.is_open:
            return self._channel
        # The engine holds the socket while a controller restarts: no file, no instance here.
        await see_to_socket(self._home)
        if not self._home.controller_socket.exists():
            raise self._missing("there is no such socket")
        address = f"unix:{self._home.controller_socket}"
        try:
            self._channel = await connect(address, name="control client")
        except ConnectionLostError as error:
            raise self._missing(str(error)) from error
        return self._channel

    def _missing(self, detail: str) -> InstanceError:
        return InstanceError(
            f"No instance answers at {self._home.controller_socket} ({detail}). Start one with "
            "`remora start`, or with `remora.run(app)` in a script; REMORA_HOME says which folder "
            "is meant."
        )
