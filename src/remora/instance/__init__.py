"""One instance, as a program outside of it sees it: found running, or launched.

What the public functions and the command line do to an instance is done here, once; those two
only choose how to wait and what to print.

Rules: prints nothing, holds no module-level state. Modules that need an event loop are imported
when they are first used: a command launches the supervisor before it pays for them.

Concurrency: the coroutines may run on any loop, also each on another one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, TypeVar

from remora.errors import InstanceError
from remora.instance.processes import EXIT_LIMIT_S, InstanceProcesses

if TYPE_CHECKING:
    from remora.control.client import ControlClient
    from remora.wire.control import (
        ApplicationSpec,
        ApplicationStatus,
        ConfigRequest,
        InstanceStatus,
    )
    from remora.wire.health import ControllerHealth
    from remora.wire.plan import Plan
    from remora.wire.releases import Release
    from remora.wire.scaling import ScalingDetail

T = TypeVar("T")

#: Seconds that the controller has to say that it heard of a shutdown. The draining comes after.
_HEARD_LIMIT_S = 10.0


class Instance(InstanceProcesses):
    """An instance that ran already, or one that this program launched; its controller is asked."""

    async def _ask(self, ask: Callable[[ControlClient], Awaitable[T]]) -> T:
        from remora.control.client import ControlClient

        async with ControlClient(self.home) as client:
            return await ask(client)

    async def status(self) -> InstanceStatus:
        """Ask how everything is.

        Raises:
            InstanceError: the controller does not answer.
        """
        return await self._ask(lambda client: client.status())

    async def controller_health(self) -> ControllerHealth:
        """Ask how the controller itself is.

        Raises:
            InstanceError: the controller does not answer.
        """
        return await self._ask(lambda client: client.health())

    async def scaling(self) -> tuple[ScalingDetail, ...]:
        """Ask how every deployment is scaled, and why.

        Raises:
            InstanceError: the controller does not answer.
        """
        return await self._ask(lambda client: client.scaling(past=True))

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
        return await self._ask(lambda client: client.submit(request))

    async def plan(self, request: ConfigRequest) -> Plan:
        """Ask what a config would change; its code is imported for that.

        Raises:
            RemoraError: it would be refused.
        """
        return await self._ask(lambda client: client.plan(request))

    async def releases(self) -> list[Release]:
        """Ask what was deployed when, oldest first."""
        return await self._ask(lambda client: client.releases())

    async def roll_back(self, number: int) -> int:
        """Go back to what a release said; returns the number of the new release.

        Raises:
            ReleaseError: there is no such release, or it cannot come back.
        """
        return await self._ask(lambda client: client.roll_back(number))

    async def configs(self) -> dict[str, bytes]:
        """What was declared of each application, as JSON, by name.

        Raises:
            InstanceError: the controller does not answer.
        """
        return await self._ask(lambda client: client.configs())

    async def delete(self, names: Sequence[str]) -> None:
        """Begin to delete applications; those that do not exist are gone already.

        Raises:
            InstanceError: the controller does not answer.
        """
        await self._ask(lambda client: client.delete(names))

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


def _is_newer(now: ApplicationStatus, before: ApplicationStatus | None) -> bool:
    """What an application was like before a deploy says nothing about that deploy. Pure."""
    return before is None or (now.revision, now.last_deployed_time_s) != (
        before.revision,
        before.last_deployed_time_s,
    )
