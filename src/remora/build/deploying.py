"""Hands applications to an instance, waits for them, and says what it waits for.

For plain code, with or without an event loop of its own.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing
from typing import TYPE_CHECKING

from remora.core.status_text import awaited, failure_text
from remora.current import note_change, wait_for
from remora.errors import DeployError
from remora.instance import Instance

if TYPE_CHECKING:
    from remora.wire.control import ApplicationSpec, ApplicationStatus

_log = logging.getLogger("remora")

#: Seconds after which `run` says what it waits for.
SLOW_AFTER_S = 5.0
#: Seconds that `delete` waits for an application to be gone.
DELETE_LIMIT_S = 60.0


def deploy_all(instance: Instance, specs: list[ApplicationSpec], *, wait: bool) -> None:
    """Deploy applications together.

    Args:
        instance: takes them.
        specs: describe them.
        wait: True: return when everything runs; False: when it is accepted.

    Raises:
        DeployError: one of them cannot be brought up.
        RemoraError: they are refused.
    """
    try:
        wait_for(instance, lambda i: _deploy(i, specs, wait))
    finally:
        note_change()


async def _deploy(instance: Instance, specs: list[ApplicationSpec], wait: bool) -> None:
    waiting = {spec.name for spec in specs} if wait else set()
    latest: dict[str, ApplicationStatus] = {}
    loop = asyncio.get_running_loop()
    slow = loop.call_later(SLOW_AFTER_S, lambda: _tell_slow(waiting, latest))
    async with aclosing(instance.deploy(specs)) as reports:
        async for report in reports:
            latest.update(report)
            for name in waiting & report.keys():
                app = report[name]
                if app.status == "DEPLOY_FAILED" or app.failure:
                    raise DeployError(f"Deploying application {name} failed.\n{failure_text(app)}")
                if app.status == "RUNNING":
                    waiting.discard(name)
            if not waiting:
                slow.cancel()
                return


def _tell_slow(waiting: set[str], latest: dict[str, ApplicationStatus]) -> None:
    """Say once what applications wait for, where a script shows warnings: on stderr."""
    for name in sorted(waiting & latest.keys()):
        reasons = [
            f"{one.name}: {awaited(one) or one.message}"
            for one in latest[name].deployments.values()
            if one.status != "HEALTHY"
        ]
        _log.warning(
            "Application %r is not ready after %g s. %s", name, SLOW_AFTER_S, " ".join(reasons)
        )


def announce(specs: list[ApplicationSpec], url: str, *, aloud: bool) -> None:
    """Say that applications run, and where.

    Args:
        specs: describe them.
        url: of the front door; empty: there is none.
        aloud: True: to the user of the program, not only to the log.
    """
    for spec in specs:
        where = f" at {url}{spec.route_prefix}" if url and spec.route_prefix else ""
        _log.info("Application %r runs%s.", spec.name, where)
        if aloud:
            # Nothing is returned that could be asked, and without it the program says nothing.
            print(f"Application {spec.name!r} is ready{where or '.'}", flush=True)  # noqa: T201


def delete_all(instance: Instance, names: list[str]) -> None:
    """Delete applications and wait until they are gone.

    Raises:
        TimeoutError: they are not after `DELETE_LIMIT_S`; they still will be.
    """

    async def deleted(instance: Instance) -> None:
        await instance.delete(names)
        await asyncio.wait_for(instance.wait_deleted(names), DELETE_LIMIT_S)

    try:
        wait_for(instance, deleted)
    except TimeoutError:
        raise TimeoutError(
            f"Applications {', '.join(names)} are not gone after {DELETE_LIMIT_S:g}s; they finish "
            "their ongoing requests. `remora status` shows how far they are."
        ) from None
    finally:
        note_change()
