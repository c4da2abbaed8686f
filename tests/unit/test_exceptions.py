"""The errors and classes that users of Ray Serve know by name."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from remora import exceptions
from remora.handle import (
    DeploymentBroadcastResponse,
    DeploymentHandle,
    DeploymentResponse,
    DeploymentResponseGenerator,
    ReplicaSelection,
)


@pytest.mark.parametrize(
    ("error", "attributes"),
    [
        (exceptions.RayServeException("text"), {"message": "text"}),
        (
            exceptions.BackPressureError(3, 2, 429, 1.5),
            {"num_queued_requests": 3, "status_code": 429, "retry_after_s": 1.5},
        ),
        (exceptions.BackPressureError(3, 2), {"status_code": 503, "retry_after_s": None}),
        (exceptions.RequestCancelledError("r-1"), {"request_id": "r-1"}),
        (exceptions.RequestCancelledError(), {"request_id": None}),
        (exceptions.DeploymentUnavailableError("app/D"), {"deployment_id": "app/D"}),
        (exceptions.ReplicaUnavailableError("app/D#1"), {"replica_id": "app/D#1"}),
    ],
)
def test_errors_are_made_as_in_ray_serve_and_survive_pickling(
    error: exceptions.RayServeException, attributes: dict[str, Any]
) -> None:
    for one in (error, pickle.loads(pickle.dumps(error))):
        assert isinstance(one, exceptions.RayServeException)
        assert one.message == str(one) != ""
        assert {name: getattr(one, name) for name in attributes} == attributes


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (
            DeploymentHandle,
            (
                "options remote choose_replica dispatch broadcast shutdown shutdown_async _init "
                "deployment_name app_name is_initialized running_replicas_populated"
            ),
        ),
        (
            DeploymentResponse,
            (
                "__await__ result cancel cancelled request_id by_reference _to_object_ref "
                "_to_object_ref_sync"
            ),
        ),
        (
            DeploymentResponseGenerator,
            (
                "__iter__ __next__ __aiter__ __anext__ result cancel cancelled request_id "
                "by_reference _to_object_ref_gen _to_object_ref_gen_sync"
            ),
        ),
        (DeploymentBroadcastResponse, "results results_async"),
        (ReplicaSelection, "to_dict"),
    ],
)
def test_handles_and_responses_have_the_names_of_ray_serve(kind: type, names: str) -> None:
    # Looked for in the class: an instance of a handle has every name.
    assert [name for name in names.split() if name not in dir(kind)] == []
    assert hasattr(kind, "__class_getitem__") == (
        kind in (DeploymentHandle, DeploymentResponse, DeploymentResponseGenerator)
    )
