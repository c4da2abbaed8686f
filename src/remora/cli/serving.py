"""The middle of `remora run`: deploy, stay, deploy again after an edit, end.

Exit status: 0 after Ctrl-C or SIGTERM once the application served; 130 when interrupted before
that, or a second time while it stopped.

Concurrency: one event loop, in the main thread. Importing the user's module blocks it, on
purpose: such modules expect the main thread.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import uuid
from collections.abc import Callable, Coroutine, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

from remora.build.graph import build
from remora.cli.errors import INTERRUPTED_STATUS, CommandError
from remora.cli.progress import SETTLED, PlainNarrator, narrator
from remora.cli.reload import edits, forget_modules
from remora.cli.report import address
from remora.cli.run import RunOptions
from remora.cli.target import Target, load
from remora.core.status_text import failure_text
from remora.errors import RemoraError
from remora.instance import Instance
from remora.wire.control import ApplicationSpec, ApplicationStatus

T = TypeVar("T")


def say(line: str) -> None:
    """Tell something that is no result."""
    print(line, file=sys.stderr, flush=True)


def serve(
    options: RunOptions, target: Target, arguments: Mapping[str, str], instance: Instance
) -> int:
    """Serve until interrupted, or until ready; return the exit status.

    Raises:
        CommandError: the application could not be loaded or deployed.
    """

    def describe() -> ApplicationSpec:
        application = load(target, arguments, options.app_dir)
        # New for every edit: also one of a module that the application only uses.
        version = uuid.uuid4().hex
        return build(application, options.name, options.route_prefix, code_version=version)

    # Outside of the event loop: Ctrl-C interrupts a slow import like any other code.
    spec = describe()
    url = instance.wait_ready()
    return asyncio.run(_Run(options, instance, describe, url).serve(spec))


class Interrupts:
    """Counts Ctrl-C and SIGTERM: the first asks to finish, the second to stop at once."""

    def __init__(self) -> None:
        self.first = asyncio.Event()
        self.second = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._count)

    def _count(self) -> None:
        (self.second if self.first.is_set() else self.first).set()


async def unless(event: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """Return what `work` returns, or None when `event` comes first; `work` is cancelled then."""
    task = asyncio.ensure_future(work)
    waiter = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait((task, waiter), return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        waiter.cancel()
        task.cancel()
        # Whatever it ends with now, the interruption is what counts.
        await asyncio.wait((task,))


class _Run:
    """One `remora run`, from the first deploy to the end."""

    def __init__(
        self,
        options: RunOptions,
        instance: Instance,
        describe: Callable[[], ApplicationSpec],
        url: str,
    ) -> None:
        self._options = options
        self._instance = instance
        self._describe = describe
        self._url = url

    async def serve(self, spec: ApplicationSpec) -> int:
        """Deploy, stay for as long as asked, end; return the exit status."""
        interrupts = Interrupts()
        status = await unless(interrupts.first, self._first_deploy(spec))
        if status is None:
            say("Interrupted before the application was ready.")
            return INTERRUPTED_STATUS
        if not self._options.blocking:
            return 0
        if await unless(interrupts.first, self._stay(status)):
            say("The instance was shut down from elsewhere.")
            return 0
        say("Stopping: ongoing requests finish first. Ctrl-C again stops at once.")
        ended = await unless(interrupts.second, self._finish())
        return INTERRUPTED_STATUS if ended is None else 0

    async def _first_deploy(self, spec: ApplicationSpec) -> ApplicationStatus:
        status = await self._deploy(spec)
        print(ready_line(status, self._url, self._instance.grpc_address), flush=True)
        return status

    async def _deploy(self, spec: ApplicationSpec) -> ApplicationStatus:
        """Deploy and follow until it serves.

        Raises:
            CommandError: it will not serve.
            InstanceError: the instance has ended.
        """
        told = narrator()
        last: ApplicationStatus | None = None
        try:
            async with aclosing(self._instance.deploy([spec])) as reports:
                async for report in reports:
                    last = report.get(spec.name)
                    if last is not None:
                        told.show(last)
                        if last.status in SETTLED:
                            break
        finally:
            told.close()
        assert last is not None
        if last.status != "RUNNING" or last.failure:
            raise CommandError(
                f"Application {last.name!r} could not be deployed.",
                user_traceback=failure_text(last),
            )
        return last

    async def _finish(self) -> bool:
        """End what this command began: the instance, or in one that ran before, its application."""
        if not self._instance.joined:
            return await self._instance.shut_down()
        names = [self._options.name]
        await self._instance.delete(names)
        await self._instance.wait_deleted(names)
        return True

    async def _stay(self, status: ApplicationStatus) -> bool:
        """Tell what changes, and deploy again after edits, until cancelled.

        Returns:
            True: the instance was shut down in good order.

        Raises:
            CommandError: it was killed.
        """
        told = PlainNarrator(status)
        async with asyncio.TaskGroup() as group:
            following = None
            if self._options.reload:
                following = group.create_task(self._follow_edits())
            async with aclosing(self._instance.watch()) as statuses:
                async for now in statuses:
                    if application := now.applications.get(self._options.name):
                        told.show(application)
            if following is not None:
                following.cancel()
        await self._instance.wait_gone()
        if self._instance.was_killed():
            raise CommandError(
                f"The instance in {self._instance.home.root} was killed: its supervisor (pid "
                f"{self._instance.pid}) ended without cleaning up."
            )
        return True

    async def _follow_edits(self) -> None:
        folder = self._options.app_dir
        async with aclosing(edits(folder)) as changes:
            await anext(changes)
            say(f"Watching {folder} for edits.")
            async for files in changes:
                say(f"{', '.join(files)} changed: deploying again.")
                forget_modules(folder, [folder / file for file in files])
                try:
                    await self._deploy(self._describe())
                except (CommandError, RemoraError) as error:
                    say(getattr(error, "user_traceback", "") or error.message)
                    say("The version before this edit keeps serving.")
                else:
                    say("The edited version serves.")


def ready_line(status: ApplicationStatus, url: str, grpc_address: str = "") -> str:
    """Say where the application is. Pure."""
    places = [address(url, status.route_prefix), grpc_address and f"gRPC {grpc_address}"]
    where = " and ".join(place for place in places if place)
    return f"Application {status.name!r} is ready{f' at {where}' if where else '.'}"
