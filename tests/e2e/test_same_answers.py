"""A FastAPI application answers the same under Remora and under uvicorn alone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any, cast

import pytest
import schemathesis
import uvicorn
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from tests.e2e.instances import Instance
from tests.e2e.schema_app import api

import remora

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(120)]

schema = schemathesis.openapi.from_asgi("/openapi.json", api)
OPERATIONS = [cast(Any, found).ok() for found in schema.get_all_operations()]
#: Headers whose content is each server's own.
OWN = frozenset(("date", "server", "x-request-id", "connection", "transfer-encoding"))


@pytest.fixture(scope="module")
def bare() -> Iterator[str]:
    """The URL of the application on uvicorn alone."""
    config = uvicorn.Config(api, port=0, log_level="error", http="httptools", lifespan="off")
    server = uvicorn.Server(config)
    listener = config.bind_socket()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join(10)
    listener.close()


@pytest.fixture(scope="module")
def served(shared: Instance) -> str:
    """The URL of the application on Remora."""
    deployment = remora.deployment(remora.ingress(api)())
    app = asyncio.run(shared.deploy(deployment.bind(), "everything", route="/"))
    assert app.status == "RUNNING", app
    return shared.url


def shown(response: Any) -> tuple[int, bytes, dict[str, str]]:
    headers = {k.lower(): ", ".join(v) for k, v in response.headers.items() if k.lower() not in OWN}
    return response.status_code, response.content, headers


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: f"{mode.value} data")
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.label)
def test_every_operation_answers_the_same(
    operation: Any, mode: GenerationMode, bare: str, served: str
) -> None:
    @settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(operation.as_strategy(generation_mode=mode))
    def same(case: Any) -> None:
        assert shown(case.call(base_url=served)) == shown(case.call(base_url=bare))

    same()
