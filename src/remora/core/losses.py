"""What the log says of a replica that died: which one, how it ended, and what follows.

Rules: pure. A loss is noted where it is taken in, once for each replica; what follows is said
when the step that took it in has decided everything else.
"""

from __future__ import annotations

from dataclasses import dataclass

from remora.core import restart
from remora.core.goal import goal_of
from remora.core.state import ControllerState, Pacing
from remora.types import DeploymentID, ReplicaID, Seconds


@dataclass(frozen=True)
class Loss:
    """A replica that is no more, or is given up."""

    replica_id: ReplicaID
    deployment: DeploymentID
    #: How it ended, for people; may end with a traceback.
    how: str
    #: It was on its way out, so that nothing takes its place.
    was_leaving: bool = False


def tell(loss: Loss, state: ControllerState, now: Seconds) -> str:
    """Say what became of a replica and what follows, in one line. Pure."""
    lines = loss.how.strip().splitlines() or ["it is gone"]
    # A traceback is shown once, by whoever deployed; it stays in the status.
    how = lines[0].strip().rstrip(":")
    if loss.replica_id not in how:
        how = f"Replica {loss.replica_id}: {how}"
    return f"{how.rstrip('.')}. {_what_follows(loss, state, now)}"


def _what_follows(loss: Loss, state: ControllerState, now: Seconds) -> str:
    app = state.applications.get(loss.deployment.app_name)
    deployment = app.deployments.get(loss.deployment.name) if app is not None else None
    if loss.was_leaving or app is None or app.deleting or deployment is None or deployment.removed:
        return "It was leaving: none takes its place."
    goal = goal_of(deployment)
    if goal.target is None:
        times = restart.in_a_row(deployment.failures)
        return f"No other one is started: it failed {times}. Mend it and deploy again."
    before = "the version before is started" if goal.fallen_back else "another one is started"
    pacing = state.pacing.get(loss.deployment) or Pacing()
    if pacing.retry_at_s > now:
        return f"Backing off: {before} in {pacing.retry_at_s - now:.1f} s."
    if pacing.num_unplaced:
        return f"Another one waits for room: {pacing.unplaced.rstrip('.')}."
    return f"{before[0].upper()}{before[1:]}."
