from __future__ import annotations

import msgspec
import pytest

from remora.config import BackpressureConfig, DeploymentConfig
from remora.core.replica_state import Replica, ReplicaState
from remora.core.state import (
    Activity,
    Application,
    ControllerState,
    Deployment,
    Target,
    make_target,
    validate,
)
from remora.errors import InternalError
from remora.types import ReplicaID
from remora.wire.control import Surroundings


def target(code_version: str = "1", cwd: str = "", **options: object) -> Target:
    return make_target(
        code_key="code/1",
        code_version=code_version,
        config=DeploymentConfig(**options),  # type: ignore[arg-type]
        surroundings=Surroundings(cwd=cwd),
        route_prefix="/",
        ingress=True,
        revision=1,
    )


def state(*replicas: Replica) -> ControllerState:
    deployment = Deployment(
        name="d", target=target(), replicas={each.replica_id: each for each in replicas}
    )
    app = Application(
        name="a",
        route_prefix="/",
        ingress="d",
        revision=1,
        last_deployed_unix_s=1.0,
        deployments={"d": deployment},
    )
    return ControllerState(applications={"a": app}, salt="s")


def replica(number: int = 1, **changes: object) -> Replica:
    made = Replica(replica_id=ReplicaID(f"a/d#{number}"), version="v", rank=number)
    return msgspec.structs.replace(made, **changes)


@pytest.mark.parametrize(
    "change",
    [{"code_version": "2"}, {"cwd": "/x"}, {"resources": {"GPU": 1.0}}, {"env_vars": {"A": "1"}}],
)
def test_what_a_process_is_born_with_needs_a_new_replica(change: dict[str, object]) -> None:
    assert target().version != target(**change).version  # type: ignore[arg-type]


@pytest.mark.parametrize("change", [{"user_config": {"a": 1}}, {"max_ongoing_requests": 7}])
def test_what_a_replica_reads_needs_a_reconfiguration(change: dict[str, object]) -> None:
    assert target().version == target(**change).version  # type: ignore[arg-type]
    assert target().config_key != target(**change).config_key  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        {"num_replicas": 3},
        {"max_queued_requests": 3},
        {"health_check_period_s": 3.0},
        {"backpressure_config": BackpressureConfig(status_code=429)},
        {"idempotent": True},
        {"max_surge_percent": 10},
    ],
)
def test_what_only_the_controller_and_routers_read_touches_no_replica(
    change: dict[str, object],
) -> None:
    one, other = target(), target(**change)  # type: ignore[arg-type]
    assert (one.version, one.config_key) == (other.version, other.config_key)


def test_the_order_of_keys_in_a_user_config_does_not_matter() -> None:
    one, other = target(user_config={"a": 1, "b": 2}), target(user_config={"b": 2, "a": 1})
    assert one.config_key == other.config_key


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (state(replica(state=ReplicaState.STOPPED)), "is STOPPED among the living"),
        (state(replica(state=ReplicaState.RUNNING)), "RUNNING without an address"),
        (
            state(
                replica(1, resources={"GPU": 0.75}, gpus=(0,)),
                replica(2, resources={"GPU": 0.5}, gpus=(0,)),
            ),
            "GPU 0 of local is overbooked",
        ),
        (ControllerState(activity={ReplicaID("a/d#9"): Activity()}), "a/d#9 is gone"),
        (ControllerState(stopped=(replica(),)), "is PENDING in the past"),
    ],
)
def test_validate_finds_what_is_wrong(broken: ControllerState, message: str) -> None:
    with pytest.raises(InternalError, match=message):
        validate(broken)


def test_validate_finds_a_shared_route_prefix() -> None:
    broken = state()
    broken.applications["b"] = msgspec.structs.replace(broken.applications["a"], name="b")
    with pytest.raises(InternalError, match="share route prefix /"):
        validate(broken)
    broken.applications["b"].deleting = True
    validate(broken)
