"""What a config would change: imports it as a deploy does, and lets the pure part say the rest.

Rules: decides nothing, stores nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from remora.control.builders import as_request
from remora.control.controller import Controller
from remora.core import events as ev
from remora.core import requests
from remora.core.plan import plan
from remora.core.replica_state import ReplicaState
from remora.core.state import ControllerState
from remora.core.submission import ApplicationRequest
from remora.errors import RemoraError
from remora.types import DeploymentID, NodeID
from remora.wire.plan import Plan

#: Tells the memory of a process by its pid, in a thread; 0: it is not known.
Measure = Callable[[int], int]
#: Replicas of one deployment that are measured: they are much alike.
_MEASURED = 2


async def planned(controller: Controller, submitted: ev.ConfigSubmitted, measure: Measure) -> Plan:
    """Import what a config names and say what it would change.

    Raises:
        RemoraError: it would be refused.
    """
    refused = requests.check(controller.state, submitted)
    if refused is not None:
        raise refused
    built: list[ApplicationRequest] = []
    failed: dict[str, str] = {}

    async def build(index: int) -> None:
        declared = submitted.applications[index]
        try:
            spec = await controller.builders.build_for_plan(declared)
            request = as_request(
                spec, ["" for _ in spec.deployments], controller.engine.default_resources
            )
            unfit = requests.check(
                controller.state, ev.ApplicationBuilt(release=0, application=request)
            )
            if unfit is not None:
                raise unfit
            built.append(request)
        except RemoraError as error:
            failed[declared.name] = str(error)

    await asyncio.gather(*(build(index) for index in range(len(submitted.applications))))
    measured = await replica_bytes(controller.state, controller.engine.node_id, measure)
    return plan(controller.state, submitted, built, failed, measured)


async def replica_bytes(
    state: ControllerState, node_id: NodeID, measure: Measure
) -> dict[DeploymentID, int]:
    """Measure the memory of some of the replicas that run, on average by deployment.

    Args:
        state: of the controller.
        node_id: the node that this process runs on; elsewhere a pid is somebody else's here.
        measure: may take long.
    """
    pids: dict[DeploymentID, list[int]] = {}
    for app in state.applications.values():
        for deployment in app.deployments.values():
            here = [
                replica.pid
                for replica in deployment.in_state(ReplicaState.RUNNING)
                if replica.node_id == node_id and replica.pid is not None
            ]
            pids[DeploymentID(deployment.name, app.name)] = here[:_MEASURED]
    # The kernel goes through all pages of a process for it: a tenth of a second for a large one.
    return await asyncio.to_thread(_measured, pids, measure)


def _measured(pids: dict[DeploymentID, list[int]], measure: Measure) -> dict[DeploymentID, int]:
    found: dict[DeploymentID, int] = {}
    for where, those in pids.items():
        sizes = [size for pid in those if (size := measure(pid))]
        if sizes:
            found[where] = sum(sizes) // len(sizes)
    return found


def process_bytes(pid: int) -> int:
    """Return the memory that a process has to itself, in bytes; 0: there is no such process."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    # What it shares with the template is there once, however many replicas there are.
    private = ("Private_Clean:", "Private_Dirty:")
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(private))
