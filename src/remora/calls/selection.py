"""`choose_replica` and `dispatch`: pick the replica first, say what it shall do later.

Between the two a slot on exactly that replica is reserved. Whoever leaves the `async with` without
having used it gives it back; so do the end of the caller and the call's deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from remora.context import ReplicaID
from remora.request_context import RequestContext
from remora.router.pinned import HeldSlot
from remora.transport.address import parse
from remora.types import DeploymentID

if TYPE_CHECKING:
    from remora.router.link import ReplicaLink
    from remora.router.router import Router
    from remora.wire.messages import Envelope
    from remora.wire.parcel import Body


class ReplicaSelection:
    """A replica on which a slot is reserved; good for one `dispatch`.

    Attributes:
        replica_id: of the replica.
        deployment_id: application and deployment.
        node_id: the node that it runs on.
        node_ip: of that node, as far as it is known here.
        port: where it takes requests; None: not over TCP.
        availability_zone: of that node; None: unknown.
        replica_metadata: what the replica's code says of itself.
        address: where it takes requests, as the router sees it.
    """

    def __init__(self, deployment: DeploymentID, link: ReplicaLink, slot: HeldSlot) -> None:
        where = parse(link.address)
        self.deployment_id = deployment
        self.replica_id = ReplicaID(link.replica_id)
        self.node_id: str = link.node_id
        self.node_ip = where.host or "127.0.0.1"
        self.port = where.port or None
        self.availability_zone: str | None = link.availability_zone or None
        self.replica_metadata: dict[str, Any] = dict(link.metadata)
        self.address = link.address
        self._slot: HeldSlot | None = slot
        self._why_not = ""

    def to_dict(self) -> dict[str, Any]:
        """Everything about the replica as plain data."""
        return {
            "replica_id": str(self.replica_id),
            "node_ip": self.node_ip,
            "port": self.port,
            "node_id": self.node_id,
            "availability_zone": self.availability_zone,
            "replica_metadata": self.replica_metadata,
        }

    def __repr__(self) -> str:
        return f"ReplicaSelection({self.replica_id!r})"

    def take(self, deployment: DeploymentID, loop: asyncio.AbstractEventLoop | None) -> HeldSlot:
        """Take the slot, for a call from `loop`.

        Raises:
            ValueError: it was reserved for another deployment.
            RuntimeError: it is used already, was given back, or belongs to another loop.
        """
        if deployment != self.deployment_id:
            raise ValueError(
                f"{self!r} was chosen for {self.deployment_id}: a handle of {deployment} cannot "
                "send to it. Choose with the handle that dispatches."
            )
        slot = self._slot
        if slot is None:
            raise RuntimeError(f"{self!r} {self._why_not}; choose_replica() reserves another one.")
        if loop is not slot.loop:
            raise RuntimeError(
                f"{self!r} belongs to the event loop in which it was chosen; dispatch there."
            )
        self._slot, self._why_not = None, "was dispatched to already"
        return slot

    def give_back(self) -> None:
        """Let go of the slot, if nothing was sent to it."""
        slot = self._slot
        if slot is not None:
            self._slot, self._why_not = None, "is over: its `async with` has ended"
            slot.cancel()


@asynccontextmanager
async def reserved(
    router: Router, envelope: Envelope, context: RequestContext | None, body: Body = b""
) -> AsyncIterator[ReplicaSelection]:
    """Reserve a slot; give it back at the end, unless it was used.

    Args:
        router: of the deployment.
        envelope: of the call that is going to be made.
        context: the request that it is made for.
        body: its arguments, for policies that look at them.

    Raises:
        RequestError: no replica has room in time.
    """
    slot = HeldSlot(router, envelope, body)
    if context is not None:
        children = context.add_child(slot)
        slot.on_close = lambda: children.discard(slot)
    router.submit(slot)
    selection = ReplicaSelection(router.deployment, await slot.wait_held(), slot)
    try:
        yield selection
    finally:
        selection.give_back()
