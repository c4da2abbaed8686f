"""The JSON Schema says what the checks say."""

from __future__ import annotations

from typing import Any

import jsonschema_rs
import pytest

from remora.config_file.declaration import APPLICATION_KEYS, DEPLOYMENT_KEYS, KEYS, problems
from remora.config_file.schema import json_schema

GOOD: list[Any] = [
    {"applications": []},
    {
        "proxy_location": "Disabled",
        "http_options": {"port": 0, "request_timeout_s": None},
        "target_capacity": 50,
        "admin_options": {"host": None, "port": 0},
        "engine": "local",
        "grpc_options": {"grpc_servicer_functions": ["a.b"]},
        "applications": [
            {
                "name": "a",
                "route_prefix": None,
                "autoscaling_policy": {"policy_function": "policies:decide"},
                "external_scaler_enabled": False,
                "import_path": "server:app",
                "args": {"n": 1},
                "runtime_env": {"env_vars": {"A": "b"}, "working_dir": "."},
                "deployments": [
                    {
                        "name": "X",
                        "num_replicas": 2,
                        "user_config": [1],
                        "backpressure_config": {"status_code": 429},
                        "ray_actor_options": {"num_cpus": 1},
                    }
                ],
            }
        ],
    },
]
BAD: list[Any] = [
    [],
    {"applications": None},
    {"aplications": []},
    {"applications": [{}]},
    {"applications": [{"import_path": "a:b", "deployments": [{"num_replicas": 1}]}]},
    {"applications": [{"import_path": "a:b", "deployments": [{"name": "X", "nope": 1}]}]},
    {"applications": [], "http_options": {"prot": 1}},
    {"applications": [], "proxy_location": "Nowhere"},
]


@pytest.fixture(scope="module")
def validator() -> Any:
    return jsonschema_rs.validator_for(json_schema())


@pytest.mark.parametrize("given", GOOD)
def test_takes_what_the_checks_take(given: Any, validator: Any) -> None:
    assert problems(given) == []
    assert validator.is_valid(given), list(validator.iter_errors(given))


@pytest.mark.parametrize("given", BAD)
def test_refuses_what_the_checks_refuse(given: Any, validator: Any) -> None:
    assert problems(given) != []
    assert not validator.is_valid(given)


def test_has_every_key_and_says_what_it_is_for() -> None:
    schema = json_schema()
    assert set(schema["properties"]) == set(KEYS)
    application = schema["$defs"]["application"]["properties"]
    assert set(application) == set(APPLICATION_KEYS)
    assert all(
        each["description"] for each in (*schema["properties"].values(), *application.values())
    )
    assert set(schema["$defs"]["deployment"]["properties"]) == set(DEPLOYMENT_KEYS)
