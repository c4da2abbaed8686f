"""The instance that a command works with: found running, or started for it.

Rules: starts, finds, follows and ends; prints nothing but the note that options had no effect.
Modules that need an event loop are imported after the supervisor was started.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Self

from remora.cli.errors import CommandError
from remora.config import HTTPOptions
from remora.engine.local.launch import Launch, Owner, find_owner, launch
from remora.errors import ConnectionLostError, InstanceError
from remora.home import Home

if TYPE_CHECKING:
    from remora.wire.control import ApplicationSpec, ApplicationStatus, InstanceStatus

#: Seconds until an instance must be up. It takes a fraction of one; a machine under load, many.
START_LIMIT_S = 60.0
#: Seconds that an instance without any use has to end, before it is killed.
ABANDON_LIMIT_S = 5.0
#: Seconds between two attempts to reach a controller that is being restarted.
_RECONNECT_S = 0.1


def http_options(host: str | None, port: int | None) -> HTTPOptions:
    """Fill in the defaults for what the command line leaves open. Pure."""
    defaults = HTTPOptions()
    return HTTPOptions(
        host=defaults.host if host is None else host, port=defaults.port if port is None else port
    )


async def wait_gone(pid: int) -> None:
    """Wait until a process has ended, which need not be a child of this one."""
    import asyncio

    try:
        fd = os.pidfd_open(pid)
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


class Instance:
    """An instance that ran already, or one that was started for this command.

    Leaving the `with` block ends a bound instance, and one that was started for a command that
    failed. An instance that ran before is never ended.
    """

    def __init__(self, home: Home, started: Launch | None, owner: Owner | None) -> None:
        self.home = home
        self._started = started
        self._owner = owner

    @classmethod
    def begin(cls, host: str | None, port: int | None, *, bound: bool) -> Self:
        """Find the instance of this state folder, or start one without waiting for it.

        Args:
            host: address to listen on; None: the default.
            port: port to listen on; None: the default.
            bound: a started instance ends with this process, however that ends.

        Raises:
            InstanceError: no process can be started here.
        """
        home = Home.locate()
        owner = find_owner(home)
        if owner is None:
            return cls(home, launch(home, http_options(host, port), bound), None)
        if host is not None or port is not None:
            print(
                f"An instance runs in {home.root} already (pid {owner.pid}) and serves "
                f"{owner.http_url or 'no HTTP'}: host and port have no effect on it.",
                file=sys.stderr,
            )
        return cls(home, None, owner)

    @classmethod
    def find(cls) -> Self:
        """Find the instance of this state folder.

        Raises:
            CommandError: none runs there.
        """
        home = Home.locate()
        owner = find_owner(home)
        if owner is None:
            raise CommandError(
                f"No instance runs in {home.root}. `remora run module:app` or `remora start` "
                "starts one; the environment variable REMORA_HOME names another folder."
            )
        return cls(home, None, owner)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._started is None:
            return
        if kind is not None:
            self._started.end(ABANDON_LIMIT_S)
        else:
            self._started.release()

    @property
    def joined(self) -> bool:
        """It ran before this command."""
        return self._started is None

    def wait_ready(self) -> str:
        """Wait until the instance is up; return the URL of its front door, empty without one.

        Raises:
            InstanceError: it cannot come up; says why and what to do.
        """
        if self._started is not None:
            return self._started.wait_ready(START_LIMIT_S).http_url
        assert self._owner is not None
        return self._owner.http_url

    @property
    def pid(self) -> int:
        """Of its supervisor."""
        if self._started is not None:
            return self._started.pid
        assert self._owner is not None
        return self._owner.pid

    async def status(self) -> InstanceStatus:
        """Return what the controller knows.

        Raises:
            ConnectionLostError: the controller went away.
        """
        from remora.control.client import ControlClient

        async with ControlClient(self.home) as client:
            return await client.status()

    async def deploy(self, spec: ApplicationSpec) -> AsyncGenerator[ApplicationStatus, None]:
        """Deploy an application and yield its status, from this deploy on, at every change."""
        from remora.control.client import ControlClient

        before = (await self.status()).applications.get(spec.name)
        async with ControlClient(self.home) as client:
            await client.deploy([spec])
        revision = 0 if before is None else before.revision
        async with aclosing(self.watch()) as statuses:
            async for status in statuses:
                application = status.applications.get(spec.name)
                # What is older than this deploy says nothing about it.
                if application is not None and application.revision > revision:
                    yield application

    async def watch(self) -> AsyncGenerator[InstanceStatus, None]:
        """Yield the status now and after every change; end when the instance has ended."""
        import asyncio

        from remora.control.client import ControlClient

        ended = asyncio.ensure_future(wait_gone(self.pid))
        try:
            while not ended.done():
                with suppress(ConnectionLostError, InstanceError):
                    async with (
                        ControlClient(self.home) as client,
                        aclosing(client.watch()) as statuses,
                    ):
                        async for status in statuses:
                            yield status
                # The controller went away; the supervisor starts another one.
                await asyncio.wait((ended,), timeout=_RECONNECT_S)
        finally:
            ended.cancel()

    async def finish(self, app_name: str) -> bool:
        """End what this command started: the instance, or in one that ran before, the application.

        Ongoing requests finish first. Returns True once it is done.
        """
        from remora.control.client import ControlClient

        async with ControlClient(self.home) as client:
            if self.joined:
                await client.delete([app_name])
            else:
                await client.shutdown()
        if not self.joined:
            await wait_gone(self.pid)
            return True
        async with aclosing(self.watch()) as statuses:
            async for status in statuses:
                if app_name not in status.applications:
                    break
        return True
