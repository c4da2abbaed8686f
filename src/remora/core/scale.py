"""How many replicas a deployment should have: by its options, by demand, or by somebody outside.

`Deployment.scale` is what was decided for it, and None where its options say it. It survives the
controller, and a deploy that does not set the number.

Rules: pure. What demand asks for is decided in `core/autoscale`; this is where it takes effect.
"""

from __future__ import annotations

from remora.config import DeploymentConfig
from remora.core.autoscale.capacity import Bounds, bounds_of, scaled, whole_gangs
from remora.core.state import ControllerState, Deployment, Target


def count_of(deployment: Deployment, target: Target | None = None) -> int:
    """Say how many replicas there should be of the present target, or of another one. Pure.

    Whole gangs: a number between two of them means the greater one.
    """
    config = (target or deployment.target).config
    size = config.gang_size
    return -(-_count_alone(deployment, config) // size) * size


def _count_alone(deployment: Deployment, config: DeploymentConfig) -> int:
    scale, share = deployment.scale, deployment.capacity
    if config.autoscaling_config is not None:
        first = config.autoscaling_config.first_replicas
        return bounds_for(deployment, config).clip(first if scale is None else scale)
    if scale is not None and deployment.target.config.autoscaling_config is None:
        return whole_gangs(scaled(scale, share), config.gang_size)
    return whole_gangs(scaled(config.num_replicas, share), config.gang_size)


def bounds_for(deployment: Deployment, config: DeploymentConfig) -> Bounds:
    """Between which numbers a deployment is scaled. Pure."""
    assert config.autoscaling_config is not None
    return bounds_of(
        config.autoscaling_config,
        deployment.capacity,
        growing=deployment.growing,
        gang=config.gang_size,
    )


def attempts_for(deployment: Deployment) -> int:
    """For how many replicas failed starts are counted: at least one. Pure."""
    return max(1, count_of(deployment))


def scale_after_deploy(deployment: Deployment, new: DeploymentConfig) -> int | None:
    """Say what a deploy with other options leaves of a number that was decided before. Pure."""
    old = deployment.target.config
    autoscaling = new.autoscaling_config
    if autoscaling is None:
        # Somebody outside has set it, and this deploy does not. Demand for what the failed version
        # fell back on is no such number.
        back = deployment.previous if deployment.given_up else None
        if back is not None and back.config.autoscaling_config is not None:
            return None
        keeps = old.autoscaling_config is None and old.num_replicas == new.num_replicas
        return deployment.scale if keeps else None
    if autoscaling.initial_replicas is not None and autoscaling != old.autoscaling_config:
        return None
    return count_of(deployment)


def set_scale(deployment: Deployment, num: int) -> bool:
    """Take over a number; False: it is the present one already."""
    before = count_of(deployment)
    deployment.scale = num
    return note_count(deployment, before)


def note_count(deployment: Deployment, before: int) -> bool:
    """Begin to go to another number; False: it is still `before`."""
    after = count_of(deployment)
    if after == before:
        return False
    if deployment.completed or deployment.change != "deploy":
        deployment.change = "scale_up" if after > before else "scale_down"
    deployment.completed = False
    return True


def take_capacity(state: ControllerState, deployment: Deployment) -> None:
    """Give a deployment the present share of capacity."""
    before = count_of(deployment)
    deployment.capacity = state.target_capacity
    deployment.growing = state.capacity_grows
    note_count(deployment, before)
