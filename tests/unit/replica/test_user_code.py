"""The user's code inside a replica."""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import cloudpickle
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette

from remora.config import DeploymentConfig
from remora.context import ReplicaRank
from remora.errors import MethodNotFoundError, ReplicaStartError
from remora.observe.tracebacks import user_traceback
from remora.replica.construction import construct
from remora.replica.methods import MethodKind, in_thread
from remora.replica.user_code import UserCode
from remora.types import DeploymentID
from remora.wire.control import ReplicaSpec, Surroundings

#: What the classes below saw. They travel by value, and this list by reference.
LOG: list[Any] = []


@pytest.fixture(autouse=True)
def _empty_log() -> None:
    LOG.clear()


def log(entry: Any) -> None:
    LOG.append(entry)


def spec_of(
    target: Any, *args: Any, config: DeploymentConfig | None = None, rank: int = 0, **kwargs: Any
) -> ReplicaSpec:
    return ReplicaSpec(
        replica_id="default/D#1",
        application="default",
        deployment="D",
        # Plain classes of this module keep their identity here, as a user's module does.
        code=cloudpickle.dumps((target, args, kwargs)),
        code_version="1",
        config=config or DeploymentConfig(),
        surroundings=Surroundings(),
        ranks=(rank, 0, rank),
    )


async def made(target: Any, *args: Any, **kwargs: Any) -> UserCode:
    return await construct(spec_of(target, *args, **kwargs))


class Model:
    def __init__(self, factor: int, offset: int = 0) -> None:
        self.factor, self.offset = factor, offset
        self.thread = threading.current_thread()
        self.double = functools.partial(self.predict, 2)

    def predict(self, x: int) -> int:
        return x * self.factor + self.offset

    async def apredict(self, x: int) -> int:
        return x

    def items(self) -> Iterator[int]:
        yield 1

    async def aitems(self) -> AsyncIterator[int]:
        yield 1

    def __call__(self, request: Any) -> str:
        return "hello"

    def _hidden(self) -> None: ...


async def test_constructor_gets_its_arguments_away_from_the_loops_thread() -> None:
    code = await made(Model, 3, offset=1)
    assert code.methods.find("predict").function(2) == 7
    assert code.target.thread is not threading.current_thread()


async def test_async_constructor_is_awaited_on_the_loop() -> None:
    class Loader:
        async def __init__(self, name: str) -> None:  # type: ignore[misc]
            await asyncio.sleep(0)
            self.name, self.thread = name, threading.get_ident()

    code = await made(Loader, "x")
    assert (code.target.name, code.target.thread) == ("x", threading.get_ident())


@pytest.mark.parametrize(
    ("name", "kind"),
    (
        ("predict", MethodKind.SYNC),
        ("apredict", MethodKind.ASYNC),
        ("items", MethodKind.GENERATOR),
        ("aitems", MethodKind.ASYNC_GENERATOR),
        ("__call__", MethodKind.SYNC),
        ("double", MethodKind.SYNC),
    ),
)
async def test_method_kinds(name: str, kind: MethodKind) -> None:
    code = await made(Model, 1)
    method = code.methods.find(name)
    assert method.kind is kind
    assert code.methods.find(name) is method


async def test_kind_of_a_callable_attribute_is_that_of_its_call() -> None:
    class Scorer:
        async def __call__(self) -> int:
            return 1

    class Holder:
        def __init__(self) -> None:
            self.score = Scorer()

    code = await made(Holder)
    assert code.methods.find("score").kind is MethodKind.ASYNC


async def test_unknown_method_names_itself_and_the_nearest_first() -> None:
    code = await made(Model, 1)
    with pytest.raises(MethodNotFoundError) as caught:
        code.methods.find("predct")
    text = str(caught.value)
    assert "default/D has no method 'predct'. It has, nearest first: predict, apredict," in text
    assert "_hidden" not in text


@pytest.mark.parametrize("name", ("__init__", "__reduce__", "factor"))
async def test_what_is_no_method_cannot_be_called(name: str) -> None:
    code = await made(Model, 1)
    with pytest.raises(MethodNotFoundError):
        code.methods.find(name)


async def test_function_has_only_its_call() -> None:
    async def answer() -> int:
        return 1

    code = await made(answer)
    assert code.methods.find("__call__").kind is MethodKind.ASYNC
    assert code.methods.num_http_parameters == 0
    with pytest.raises(MethodNotFoundError, match="It has, nearest first: __call__"):
        code.methods.find("predict")
    await code.check_health()
    await code.destroy()


def takes_nothing() -> None: ...
def takes_request(request: Any) -> None: ...
def takes_optional(request: Any = None, extra: int = 1) -> None: ...
def takes_star(*args: Any) -> None: ...
def takes_options(*, debug: bool = False) -> None: ...
def takes_two(request: Any, user: str) -> None: ...
def takes_keyword(request: Any, *, user: str) -> None: ...


@pytest.mark.parametrize(
    ("handler", "count"),
    (
        (takes_nothing, 0),
        (takes_request, 1),
        (takes_optional, 1),
        (takes_star, 1),
        (takes_options, 0),
    ),
)
async def test_number_of_http_parameters(handler: Callable[..., Any], count: int) -> None:
    assert (await made(handler)).methods.num_http_parameters == count


@pytest.mark.parametrize("handler", (takes_two, takes_keyword))
async def test_handler_that_wants_more_than_the_request_is_told(handler: Any) -> None:
    code = await made(handler)
    with pytest.raises(TypeError, match="also requires user"):
        _ = code.methods.num_http_parameters


# ---------------------------------------------------------------------- reconfigure and health


class Configured:
    def reconfigure(self, user_config: Any) -> None:
        log(("config", user_config))

    async def check_health(self) -> None:
        log("health")


class Ranked:
    async def reconfigure(self, user_config: Any, rank: ReplicaRank) -> None:
        log((user_config, rank.rank))


async def test_start_reconfigures_before_the_first_health_check() -> None:
    code = await made(Configured, config=DeploymentConfig(user_config={"t": 1}))
    assert LOG == [("config", {"t": 1}), "health"]
    await code.reconfigure({"t": 2})
    assert LOG[-1] == ("config", {"t": 2})


async def test_start_without_user_config_does_not_reconfigure() -> None:
    await made(Configured)
    assert LOG == ["health"]


async def test_reconfigure_gets_the_rank_when_it_asks() -> None:
    code = await made(Ranked, rank=3, config=DeploymentConfig(user_config=1))
    await code.reconfigure(2, ReplicaRank(4, 0, 4))
    assert LOG == [(1, 3), (2, 4)]


async def test_user_config_without_reconfigure_fails_the_start() -> None:
    with pytest.raises(ReplicaStartError, match="no way to take it"):
        await made(Model, 1, config=DeploymentConfig(user_config={"a": 1}))


async def test_failed_first_health_check_fails_the_start_and_destroys() -> None:
    class Sick:
        def check_health(self) -> None:
            raise RuntimeError("no GPU memory")

        def __del__(self) -> None:
            log("gone")

    with pytest.raises(ReplicaStartError, match=r"first health check failed[\s\S]*no GPU memory"):
        await made(Sick)
    gc.collect()
    assert LOG == ["gone"]


async def test_first_health_check_has_a_time_limit() -> None:
    class Stuck:
        async def check_health(self) -> None:
            await asyncio.Event().wait()

    with pytest.raises(ReplicaStartError, match=r"health_check_timeout_s=0\.01"):
        await made(Stuck, config=DeploymentConfig(health_check_timeout_s=0.01))


async def test_health_check_lets_the_users_error_out() -> None:
    class Moody:
        sick = False

        async def check_health(self) -> None:
            if self.sick:
                raise LookupError("lost")

    code = await made(Moody)
    await code.check_health()
    code.target.sick = True
    with pytest.raises(LookupError, match="lost"):
        await code.check_health()


# ------------------------------------------------------------------------------------- failures


class Broken:
    def __init__(self, how: str) -> None:
        if how == "exit":
            raise SystemExit(3)
        if how == "stop":
            next(iter(()))
        self.load(how)

    def load(self, how: str) -> None:
        raise FileNotFoundError(f"weights of {how}")


async def test_failed_constructor_shows_the_users_frames_and_no_others() -> None:
    with pytest.raises(ReplicaStartError) as caught:
        await made(Broken, "bert")
    text = str(caught.value)
    assert "default/D#1" in text
    assert "in __init__" in text
    assert "in load" in text
    assert "weights of bert" in text
    assert "remora/replica/" not in text
    assert "concurrent/futures" not in text
    assert isinstance(caught.value.__cause__, FileNotFoundError)


@pytest.mark.parametrize(("how", "named"), (("exit", "SystemExit: 3"), ("stop", "StopIteration")))
async def test_constructor_that_exits_or_stops_is_a_failed_start(how: str, named: str) -> None:
    with pytest.raises(ReplicaStartError, match=named):
        await asyncio.wait_for(made(Broken, how), timeout=5)


async def test_code_that_cannot_be_opened_is_a_failed_start() -> None:
    code = cloudpickle.dumps((Model, (1,), {})).replace(b"Model", b"Gone!")
    spec = spec_of(Model, 1)
    broken = ReplicaSpec(
        **{name: getattr(spec, name) for name in spec.__struct_fields__} | {"code": code}
    )
    with pytest.raises(ReplicaStartError, match="loading the code failed"):
        await construct(broken)


async def test_wrong_constructor_arguments_are_a_failed_start() -> None:
    wanted = r"the constructor failed(.|\n)*missing 1 required positional argument"
    with pytest.raises(ReplicaStartError, match=wanted):
        await made(Model)


def test_traceback_keeps_causes_and_drops_our_frames() -> None:
    def inner() -> None:
        raise KeyError("inner")

    def outer() -> None:
        try:
            inner()
        except KeyError as error:
            raise ValueError("outer") from error

    with pytest.raises(ValueError, match="outer") as caught:
        asyncio.run(in_thread(outer))
    text = user_traceback(caught.value)
    assert "in inner" in text
    assert "in outer" in text
    assert "direct cause" in text
    assert "remora/replica/" not in text


# ------------------------------------------------------------------------------------------ end


class Ending:
    def __del__(self) -> None:
        log("del")


class AsyncEnding:
    async def __del__(self) -> None:
        await asyncio.sleep(0)
        log("adel")


@pytest.mark.parametrize(("target", "entry"), ((Ending, "del"), (AsyncEnding, "adel")))
async def test_destructor_runs_exactly_once(target: Any, entry: str) -> None:
    code = await made(target)
    await code.destroy()
    await code.destroy()
    assert [entry] == LOG
    del code
    gc.collect()
    assert [entry] == LOG


async def test_destructor_of_another_object_of_the_class_stays() -> None:
    class Twice:
        def __del__(self) -> None:
            log("del")

    code = await made(Twice)
    other = type(code.target)()
    await code.destroy()
    del other
    gc.collect()
    assert LOG == ["del", "del"]


async def test_failing_destructor_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    class Bad:
        def __del__(self) -> None:
            raise OSError("busy")

    code = await made(Bad)
    with caplog.at_level(logging.ERROR, logger="remora"):
        await code.destroy()
    assert "__del__ failed" in caplog.text
    assert "OSError: busy" in caplog.text


# ----------------------------------------------------------------------------------------- ASGI


def ingress_of(app: Any) -> type:
    class Ingress:
        def __remora_asgi_app__(self) -> Any:
            return app

        def __del__(self) -> None:
            log("del")

    return Ingress


async def construct_here(target: Any) -> UserCode:
    """Construct with the app of this process: an app travels by value otherwise."""
    code = UserCode(DeploymentID("D"), target())
    await code.start_asgi_app()
    return code


async def test_app_starts_up_and_shuts_down_before_the_destructor() -> None:
    @asynccontextmanager
    async def lifespan(_app: Any) -> AsyncIterator[None]:
        log("up")
        yield
        log("down")

    app = Starlette(lifespan=lifespan)
    code = await construct_here(ingress_of(app))
    assert code.asgi_app is app
    assert code.docs_path == ""
    await code.destroy()
    assert LOG == ["up", "down", "del"]


@pytest.mark.parametrize(
    ("app", "docs"),
    (
        (FastAPI(), "/docs"),
        (FastAPI(docs_url="/manual"), "/manual"),
        (FastAPI(docs_url=None), ""),
        (FastAPI(openapi_url=None), ""),
    ),
)
async def test_docs_path_is_that_of_the_app(app: FastAPI, docs: str) -> None:
    code = await construct_here(ingress_of(app))
    assert code.docs_path == docs
    await code.destroy()


async def test_app_may_be_built_by_a_coroutine() -> None:
    class Ingress:
        async def __remora_asgi_app__(self) -> Any:
            return Starlette()

    code = await made(Ingress)
    assert isinstance(code.asgi_app, Starlette)
    await code.destroy()


async def test_builder_that_returns_nothing_fails_the_start() -> None:
    class Ingress:
        def __remora_asgi_app__(self) -> Any:
            return None

    with pytest.raises(ReplicaStartError, match="its builder returned None"):
        await made(Ingress)


async def test_failed_startup_of_the_app_fails_the_start_with_its_traceback() -> None:
    class Ingress:
        def __remora_asgi_app__(self) -> Any:
            @asynccontextmanager
            async def lifespan(app: Any) -> Any:
                if not hasattr(app, "database"):
                    raise ValueError("no database")
                yield

            return Starlette(lifespan=lifespan)

    with pytest.raises(ReplicaStartError) as caught:
        await made(Ingress)
    text = str(caught.value)
    assert "the ASGI app failed" in text
    assert "ValueError: no database" in text
    assert "in lifespan" in text
    assert "starlette/" not in text
