"""What a lost replica means for its deployment: what is remembered of it, and when the next starts.

Rules: pure; called once for each replica that is lost.
"""

from __future__ import annotations

from remora.core import restart
from remora.core.draft import Draft
from remora.core.losses import Loss
from remora.core.replica_state import Replica
from remora.core.state import Deployment
from remora.types import DeploymentID


def note_loss(
    draft: Draft,
    app: str,
    deployment: Deployment,
    replica: Replica,
    how: str,
    *,
    was_leaving: bool = False,
) -> None:
    """Have a death told to people."""
    lost_from = DeploymentID(deployment.name, app)
    draft.losses.append(Loss(replica.replica_id, lost_from, how, was_leaving))


def note_crash(
    draft: Draft, app: str, deployment: Deployment, replica: Replica, message: str
) -> None:
    """Remember that a working replica was lost, and when the next may start."""
    note_loss(draft, app, deployment, replica, message)
    if replica.version == deployment.target.version and deployment.previous is not None:
        # It came up and did not stay: a roll-out must not go on over that for ever.
        deployment.crashes += 1
        deployment.last_failure = message
    crashes, retry_at_s = restart.after_crash(draft.pacing(app, deployment).crashes_s, draft.now)
    draft.pace(app, deployment, crashes_s=crashes, retry_at_s=retry_at_s, last_crash=message)


def note_failure(
    draft: Draft, app: str, deployment: Deployment, replica: Replica, message: str
) -> None:
    """Remember that a replica did not come up, and when the next may start."""
    if replica.version != deployment.target.version:
        # What was fallen back on; it worked before, so its failures are crashes.
        note_crash(draft, app, deployment, replica, message)
        return
    note_loss(draft, app, deployment, replica, message)
    count_failure(draft, app, deployment, message)


def count_failure(draft: Draft, app: str, deployment: Deployment, message: str) -> None:
    """Remember that the target did not work, and when to try again."""
    deployment.failures += 1
    deployment.last_failure = message
    draft.pace(app, deployment, retry_at_s=draft.now + restart.delay_s(deployment.failures))
