"""How the scaling of a deployment stands, in words that tools know.

Rules: pure.
"""

from __future__ import annotations

from remora.core.goal import in_effect
from remora.core.state import Application, Deployment


def direction(running: int, target: int) -> str:
    """Say where the number of replicas is going. Pure."""
    if running == target:
        return "STABLE"
    return "UPSCALING" if running < target else "DOWNSCALING"


def metrics_health(running: int, unheard: int, silent: int) -> str:
    """Say how far what is known of the demand can be believed.

    Pure.

    Args:
        running: replicas that run.
        unheard: of those that should report, how many have said nothing yet.
        silent: how many should have said something by now.
    """
    if running and unheard == running:
        return "unavailable"
    return "delayed" if silent else "healthy"


def decided_by(app: Application, deployment: Deployment) -> str:
    """Say who decides about the number of replicas: `demand`, `outside`, or `options`. Pure."""
    if in_effect(deployment).config.autoscaling_config is not None:
        return "demand"
    return "outside" if app.external_scaler and deployment.scale is not None else "options"
