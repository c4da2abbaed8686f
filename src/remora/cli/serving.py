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
from remora.cli.progress import SETTLED, PlainProgress, progress
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
    if instance.joined and instance.was_launched and options.asks_where:
        say(
            f"The instance of the Ray cluster at {instance.cluster} runs already and serves "
            f"{url or 'no HTTP'}: host and port have no effect on it."
        )
    return asyncio.run(_Run(options, instance, describe).serve(spec, url))


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


async def serve_to_the_end(
    instance: Instance,
    names: list[str],
    deploy: Coroutine[Any, Any, Mapping[str, ApplicationStatus]],
    told: PlainProgress,
    *,
    blocking: bool,
    beside: Callable[[], Coroutine[Any, Any, None]] | None = None,
) -> int:
    """Deploy, stay for as long as asked, end what this command began; return the exit status.

    Args:
        instance: that serves.
        names: of the applications.
        deploy: brings them up; returns how they are then.
        told: tells what changes while they serve.
        blocking: stay until interrupted, and end them then.
        beside: what to do while they serve, until cancelled.

    Raises:
        CommandError: they cannot be deployed, or the instance was killed.
    """
    interrupts = Interrupts()
    deployed = await unless(interrupts.first, deploy)
    if deployed is None:
        what = "application was" if len(names) == 1 else "applications were"
        say(f"Interrupted before the {what} ready.")
        return INTERRUPTED_STATUS
    sys.stdout.flush()
    if not blocking:
        return 0
    told.take(deployed)
    if await unless(interrupts.first, _stay(instance, names, told, beside)):
        say("The instance was shut down from elsewhere.")
        return 0
    say("Stopping: ongoing requests finish first. Ctrl-C again stops at once.")
    ended = await unless(interrupts.second, _finish(instance, names))
    return INTERRUPTED_STATUS if ended is None else 0


async def _stay(
    instance: Instance,
    names: list[str],
    told: PlainProgress,
    beside: Callable[[], Coroutine[Any, Any, None]] | None,
) -> bool:
    """Tell what changes until cancelled, or until the instance was shut down.

    Raises:
        CommandError: it was killed.
    """
    async with asyncio.TaskGroup() as group:
        working = None if beside is None else group.create_task(beside())
        async with aclosing(instance.watch()) as statuses:
            async for now in statuses:
                told.show({name: app for name, app in now.applications.items() if name in names})
        if working is not None:
            working.cancel()
    await instance.wait_gone()
    if instance.was_killed():
        raise CommandError(
            f"The instance in {instance.home.root} was killed: its supervisor (pid "
            f"{instance.pid}) ended without cleaning up."
        )
    return True


async def _finish(instance: Instance, names: list[str]) -> bool:
    """End what this command began: the instance, or in one that ran before, its applications."""
    if not instance.joined:
        return await instance.shut_down()
    await instance.delete(names)
    await instance.wait_deleted(names)
    return True


class _Run:
    """One `remora run` of an application."""

    def __init__(
        self, options: RunOptions, instance: Instance, describe: Callable[[], ApplicationSpec]
    ) -> None:
        self._options = options
        self._instance = instance
        self._describe = describe

    async def serve(self, spec: ApplicationSpec, url: str) -> int:
        """Deploy, stay for as long as asked, end; return the exit status."""
        return await serve_to_the_end(
            self._instance,
            [self._options.name],
            self._first_deploy(spec, url),
            PlainProgress(named=False),
            blocking=self._options.blocking,
            beside=self._follow_edits if self._options.reload else None,
        )

    async def _first_deploy(self, spec: ApplicationSpec, url: str) -> dict[str, ApplicationStatus]:
        status = await self._deploy(spec)
        print(ready_line(status, url, self._instance.grpc_address), flush=True)
        return {status.name: status}

    async def _deploy(self, spec: ApplicationSpec) -> ApplicationStatus:
        """Deploy and follow until it serves.

        Raises:
            CommandError: it will not serve.
            InstanceError: the instance has ended.
        """
        told = progress(named=False)
        last: ApplicationStatus | None = None
        try:
            async with aclosing(self._instance.deploy([spec])) as reports:
                async for report in reports:
                    last = report.get(spec.name)
                    if last is not None:
                        told.show({spec.name: last})
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
