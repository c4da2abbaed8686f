"""Which deployments replicas call, as they say themselves: what was bound is known without them."""

from __future__ import annotations

import msgspec

from remora.types import DeploymentID
from remora.wire.control import ApplicationStatus, Callees, DeploymentStatus

#: Of one deployment. A program may make up names without end.
MAX_CALLEES = 100
#: Deployments whose callees are kept, between two looks at what there is.
MAX_CALLERS = 5_000


class CalleeRegistry:
    """What the replicas of this instance call."""

    def __init__(self) -> None:
        #: By the caller, as the ids of its replicas begin.
        self._called: dict[str, dict[DeploymentID, None]] = {}

    def note(self, said: Callees) -> None:
        """Take what a replica calls."""
        caller = said.replica_id.rpartition("#")[0]
        called = self._called.setdefault(caller, {})
        for each in said.deployments:
            if len(called) < MAX_CALLEES:
                called[each] = None
        if len(self._called) > MAX_CALLERS:
            del self._called[next(iter(self._called))]

    def added(self, applications: dict[str, ApplicationStatus]) -> dict[str, ApplicationStatus]:
        """Add what is called to what was bound, in a report of all that there is."""
        if not self._called:
            return applications
        live = {
            str(DeploymentID(name, app.name))
            for app in applications.values()
            for name in app.deployments
        }
        self._called = {caller: those for caller, those in self._called.items() if caller in live}
        return {name: self._added(app) for name, app in applications.items()}

    def _added(self, app: ApplicationStatus) -> ApplicationStatus:
        changed: dict[str, DeploymentStatus] = {}
        for name, deployment in app.deployments.items():
            called = self._called.get(str(DeploymentID(name, app.name)))
            if called:
                calls = tuple(dict.fromkeys((*deployment.calls, *called)))
                changed[name] = msgspec.structs.replace(deployment, calls=calls)
        if not changed:
            return app
        return msgspec.structs.replace(app, deployments=app.deployments | changed)
