"""What is told of a status to people who wait for it: in few words, each thing once.

Rules: pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from remora.wire.control import ApplicationStatus, DeploymentStatus

#: How a message of a deployment begins that is on its way; the counts are told elsewhere.
_COUNT = re.compile(r"^\d+ of \d+ replicas are up and running\.\s*")
#: Statuses of an application or deployment whose message somebody must read.
TROUBLE = frozenset({"DEPLOY_FAILED", "UNHEALTHY"})


def own_message(status: ApplicationStatus) -> str:
    """Return an application's message, unless its deployments' messages say the same."""
    message = status.message.strip()
    for deployment in status.deployments.values():
        part = deployment.message.strip()
        if part and (part in message or message in part):
            return ""
    return message


def awaited(deployment: DeploymentStatus) -> str:
    """Say in one line what keeps a deployment from its target; empty: nothing unusual."""
    if deployment.status in {"HEALTHY", *TROUBLE} or deployment.status_trigger == "DELETING":
        return ""
    lines = _COUNT.sub("", deployment.message.strip()).splitlines()
    # Further lines are a traceback. It comes whole with the failure, should it come to that.
    return lines[0].rstrip(" :") if lines else ""


def failure_text(status: ApplicationStatus) -> str:
    """Return why an application failed, each reason once."""
    reasons = [
        f"{status.name}/{one.name}: {one.message.strip()}"
        for one in status.deployments.values()
        if one.status in TROUBLE and one.message.strip()
    ]
    if own := own_message(status):
        reasons.insert(0, f"{status.name}: {own}")
    return "\n".join(reasons) or "no reason was given; see the logs"


def failure_texts(applications: Iterable[ApplicationStatus]) -> list[str]:
    """Return why applications failed; what several failed of together once, with all names. Pure."""
    whose: dict[str, list[str]] = {}
    for each in applications:
        text = failure_text(each)
        own = text.removeprefix(f"{each.name}: ")
        whose.setdefault(own, []).extend([each.name] if own != text else [])
    return [f"{', '.join(names)}: {own}" if names else own for own, names in whose.items()]
