"""What a new replica does before it gets requests: the `warmup` hook, and example requests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from fastapi import FastAPI, HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from tests.unit.replica.test_user_code import LOG, log, spec_of

from remora.config import DeploymentConfig
from remora.errors import ConfigError, ReplicaStartError
from remora.ingress import ingress
from remora.options.deployment import deployment_config
from remora.replica.construction import construct
from remora.replica.user_code import UserCode

__all__ = ["LOG"]


@pytest.fixture(autouse=True)
def _empty_log() -> None:
    LOG.clear()


async def start(target: Any, *examples: dict[str, Any]) -> UserCode:
    config = deployment_config({"warmup_requests": list(examples)})
    return await construct(spec_of(target, config=config))


class Warm:
    def __init__(self) -> None:
        log("constructed")

    def reconfigure(self, user_config: Any) -> None:
        log("configured")

    def warmup(self) -> None:
        log("warm")

    def check_health(self) -> None:
        log("healthy")


async def test_the_hook_runs_after_the_config_and_before_the_first_health_check() -> None:
    await construct(spec_of(Warm, config=DeploymentConfig(user_config=1)))
    assert LOG == ["constructed", "configured", "warm", "healthy"]


class AsyncWarm:
    async def warmup(self, rounds: int = 2) -> None:
        log(rounds)


class NotMeant:
    def warmup(self, prompt: str) -> None:
        log(prompt)


async def test_a_hook_may_be_async_and_one_with_arguments_is_none() -> None:
    await construct(spec_of(AsyncWarm))
    await construct(spec_of(NotMeant))
    assert LOG == [2]


class Cold:
    def warmup(self) -> None:
        raise ValueError("no kernel for this GPU")


async def test_a_hook_that_raises_fails_the_start_with_its_traceback() -> None:
    with pytest.raises(ReplicaStartError, match="the warm-up failed") as caught:
        await construct(spec_of(Cold))
    assert 'raise ValueError("no kernel for this GPU")' in str(caught.value)


class Callable:
    async def predict(self, x: int, scale: int = 1) -> int:
        log(x * scale)
        return x

    def plain(self) -> None:
        log("plain")

    def items(self) -> Iterator[int]:
        for number in range(3):
            log(number)
            yield number

    async def aitems(self) -> AsyncIterator[int]:
        for number in range(2):
            log(number)
            yield number


async def test_methods_of_all_kinds_are_called_as_often_as_is_said() -> None:
    await start(
        Callable,
        {"call": "predict", "args": [3], "kwargs": {"scale": 2}, "times": 2},
        {"call": "plain"},
        {"call": "items"},
        {"call": "aitems"},
    )
    assert LOG == [6, 6, "plain", 0, 1, 2, 0, 1]


class Plain:
    def __call__(self, request: Request) -> Any:
        log((request.method, request.url.path, request.query_params.get("q")))
        return {"ok": True}


class Responding:
    async def __call__(self, request: Request) -> PlainTextResponse:
        log(await request.json())
        return PlainTextResponse("busy", 503)


class Nothing:
    def __call__(self) -> Iterator[str]:
        log("begun")
        yield "a"
        log("ended")


async def test_plain_handlers_are_asked_over_http() -> None:
    await start(Plain, {"path": "/a?q=1", "method": "post"})
    await start(Nothing, {"path": "/"})
    assert LOG == [("POST", "/a", "1"), "begun", "ended"]


async def test_an_answer_that_is_a_failure_fails_the_start() -> None:
    with pytest.raises(ReplicaStartError, match="POST /x was answered with 503: busy"):
        await start(Responding, {"path": "/x", "method": "POST", "json": {"a": [1]}})
    assert LOG == [{"a": [1]}]


api = FastAPI()


@ingress(api)
class Routes:
    @api.post("/orders/{number}")
    async def order(self, number: int, body: dict[str, int]) -> dict[str, int]:
        log((number, body))
        return body

    @api.get("/missing")
    async def missing(self) -> None:
        raise HTTPException(404, "no such model")

    @api.get("/broken")
    async def broken(self) -> None:
        raise ValueError("on purpose")


async def test_routes_of_an_app_are_asked_below_its_prefix() -> None:
    config = deployment_config(
        {"warmup_requests": [{"path": "/orders/7", "method": "POST", "json": {"a": 1}}]}
    )
    spec = spec_of(Routes, config=config)
    await construct(spec)
    assert LOG == [(7, {"a": 1})]


async def test_a_route_that_fails_fails_the_start_with_the_reason() -> None:
    with pytest.raises(ReplicaStartError, match=r"answered with 404.*no such model"):
        await start(Routes, {"path": "/missing"})
    with pytest.raises(ReplicaStartError) as caught:
        await start(Routes, {"path": "/broken"})
    assert 'raise ValueError("on purpose")' in str(caught.value)


@pytest.mark.parametrize(
    ("example", "message"),
    [
        ({}, "either path"),
        ({"path": "/", "call": "f"}, "either path"),
        ({"path": "x"}, "begins with '/'"),
        ({"path": "/", "methods": "GET"}, "method"),
        ({"path": "/", "times": 0}, "times"),
        ({"path": "/", "json": 1, "body": "x"}, "no place beside json"),
        ({"call": "f", "args": 3}, "args"),
        ("GET /", "must be a dict"),
    ],
)
def test_an_example_that_cannot_be_right_is_refused(example: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        deployment_config({"warmup_requests": [example]})
