"""The REST API answers as its own description says, whatever is sent."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance
from starlette.types import Receive, Scope, Send
from tests.unit.rest.test_app import FakeControl

from remora.rest.app import make_app
from remora.rest.guard import Rules


@asynccontextmanager
async def connect() -> AsyncIterator[FakeControl]:
    yield FakeControl()


app = make_app(connect, {}, Rules(), "1.2.3")


async def here(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer as over the Unix socket: the client asks by a name that is not this machine's."""
    await app({**scope, "client": None}, receive, send)


schema = schemathesis.openapi.from_asgi("/openapi.json", here)
schema.config.generation.update(modes=list(GenerationMode))


@pytest.mark.slow
# Old names of options are warned of. A plan has the body of a PUT, and making one up is slow.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.timeout(60)
@schema.exclude(path="/api/remora/plan").parametrize()
@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
def test_answers_are_those_that_are_described(case: schemathesis.Case[Any]) -> None:
    # What the schema allows may still be wrong: an import path that is none, a port that is too high.
    case.call_and_validate(excluded_checks=[positive_data_acceptance])
