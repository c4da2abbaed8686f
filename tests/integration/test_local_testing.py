"""Applications in local testing mode: one process, the same router and replica code."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import threading
import weakref
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import BackgroundTasks, FastAPI, Request, WebSocket
from starlette.requests import Request as StarletteRequest
from starlette.responses import StreamingResponse
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.websockets import WebSocketDisconnect

import remora as serve
from remora import metrics
from remora.errors import InstanceError, RemoraError
from remora.testing import asgi_app

pytestmark = [pytest.mark.slow]

api = FastAPI()


@serve.deployment
class Doubler:
    def __init__(self, factor: int = 2) -> None:
        self.factor = factor
        self.begun = threading.Event()
        self.cancelled = threading.Event()

    def reconfigure(self, config: dict[str, Any]) -> None:
        if config.get("broken"):
            raise ValueError("no such factor")
        self.factor = config["factor"]

    async def __call__(self, x: int) -> int:
        return x * self.factor

    def where(self) -> tuple[int, str]:
        return os.getpid(), serve.get_replica_context().deployment

    def fail(self) -> None:
        raise KeyError("of the user")

    async def count(self, n: int) -> AsyncIterator[int]:
        for i in range(n):
            yield i

    async def forever(self) -> None:
        self.begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()

    async def has_begun(self) -> bool:
        return await asyncio.to_thread(self.begun.wait, 5.0)

    async def was_cancelled(self) -> bool:
        return await asyncio.to_thread(self.cancelled.wait, 5.0)

    async def append(self, items: list[int]) -> list[int]:
        items.append(1)
        return items


@serve.deployment
class Where:
    def __call__(self, request: StarletteRequest) -> str:
        return request.url.path


@serve.deployment(num_replicas=3)
@serve.ingress(api)
class App:
    def __init__(self, doubler: serve.DeploymentHandle) -> None:
        self.doubler = doubler
        self.replica = serve.get_replica_context().replica_id
        self.after: list[str] = []

    @api.get("/double")
    async def double(self, x: int) -> int:
        return await self.doubler.remote(x)  # type: ignore[no-any-return]

    @api.get("/me")
    def me(self) -> bool:
        return serve.get_replica_context().replica_id == self.replica

    @api.post("/size")
    async def size(self, request: Request) -> int:
        return sum([len(part) async for part in request.stream()])

    @api.get("/stream")
    async def stream(self, n: int) -> StreamingResponse:
        async def lines() -> AsyncIterator[str]:
            for i in range(n):
                yield f"{i}\n"

        return StreamingResponse(lines())

    @api.post("/later")
    async def later(self, tasks: BackgroundTasks) -> str:
        tasks.add_task(self.after.append, "done")
        return "accepted"

    @api.websocket("/chat")
    async def chat(self, socket: WebSocket) -> None:
        if "bye" in socket.query_params:
            await socket.close(4001)
            return
        await socket.accept(subprotocol=next(iter(socket.scope["subprotocols"]), None))
        async for text in socket.iter_text():
            if text == "double":
                await socket.send_bytes(b"x" * 300_000)
            elif text == "end":
                await socket.close(4000, "enough")
                return
            else:
                await socket.send_text(str(await self.doubler.remote(int(text))))
        self.after.append("client left")

    @api.get("/slow")
    async def slow(self) -> None:
        await asyncio.Event().wait()


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REMORA_HOME", str(tmp_path_factory.mktemp("home")))
        handle = serve.run(App.bind(Doubler.bind()), _local_testing_mode=True)
        yield handle
        serve.shutdown()


@pytest.fixture
def http(app: Any) -> Iterator[TestClient]:
    with TestClient(asgi_app()) as client:
        yield client


def doubler() -> Any:
    return serve.get_deployment_handle("Doubler", "default")


def test_everything_runs_in_this_process(app: Any) -> None:
    assert doubler().where.remote().result() == (os.getpid(), "Doubler")


def test_no_port_is_taken_and_the_state_folder_of_the_user_stays_empty(app: Any) -> None:
    assert list(Path(os.environ["REMORA_HOME"]).iterdir()) == []


def test_metrics_of_two_deployments_in_one_process_are_told_apart(app: Any) -> None:
    shared = metrics.Counter("shared_fish", tag_keys=("kind",))

    @serve.deployment
    class Counted:
        def __init__(self, kind: str, child: Any = None) -> None:
            self.kind, self.child = kind, child
            self.own = metrics.Counter(f"fish_of_{kind}")

        async def __call__(self, _request: Any = None) -> str:
            self.own.inc()
            shared.inc(tags={"kind": self.kind})
            return "" if self.child is None else await self.child.plain.remote()

        def plain(self) -> str:
            shared.inc(2, tags={"kind": self.kind})
            return "done"

    child = Counted.options(name="B").bind("b")
    root = Counted.options(name="A").bind("a", child)
    serve.run(root, name="fish", route_prefix="/fish", _local_testing_mode=True)
    with TestClient(asgi_app(), client=("127.0.0.1", 1)) as client:
        assert client.get("/fish").text == "done"
        text = client.get("/-/metrics").text
    serve.delete("fish")
    told = {
        line.split(" ")[0].split('replica="')[0]: line.rpartition(" ")[2]
        for line in text.splitlines()
        if line.startswith(("fish_of", "shared_fish"))
    }
    of = 'application="fish",deployment='
    assert told == {
        f'fish_of_a_total{{{of}"A",': "1",
        f'shared_fish_total{{{of}"A",': "1",
        f'shared_fish_total{{{of}"B",': "2",
    }


def test_calls_streams_and_composition_work(app: Any) -> None:
    handle = doubler()
    assert handle.remote(handle.remote(2)).result() == 8
    assert list(handle.options(stream=True).count.remote(3)) == [0, 1, 2]


async def test_calls_work_from_a_running_loop(app: Any) -> None:
    assert await doubler().remote(4) == 8


def test_the_exception_of_user_code_arrives_as_its_own_type(app: Any) -> None:
    with pytest.raises(KeyError, match="of the user"):
        doubler().fail.remote().result()


def test_arguments_travel_by_value(app: Any) -> None:
    mine = [0]
    assert doubler().append.remote(mine).result() == [0, 1]
    assert mine == [0]


def test_large_responses_are_arguments_of_other_calls(app: Any) -> None:
    doubler: Any = serve.get_deployment_handle("Doubler", "default")
    for value in range(4):
        once = doubler.remote(np.full(300_000, value))
        twice = doubler.remote(once)
        assert (twice.result() == value * 4).all()
        assert (once.result() == value * 2).all()


def test_cancelling_a_call_cancels_its_handler(app: Any) -> None:
    response = doubler().forever.remote()
    with pytest.raises(TimeoutError):
        response.result(timeout_s=0.05)
    # What has not begun is cancelled as well, but its handler hears nothing of it.
    assert doubler().has_begun.remote().result(timeout_s=5)
    response.cancel()
    assert doubler().was_cancelled.remote().result(timeout_s=5)


def test_http_goes_through_the_front_door(http: TestClient) -> None:
    response = http.get("/double", params={"x": 21})
    assert (response.status_code, response.json()) == (200, 42)
    assert response.headers["x-request-id"]
    assert http.get("/double", params={"x": "no"}).status_code == 422
    assert http.get("/-/routes").json() == {"/": "default"}
    assert http.get("/-/healthz").text == "success"


def test_a_replica_knows_who_it_is_in_threads_too(http: TestClient) -> None:
    assert http.get("/me").json() is True


def test_uploads_and_downloads_are_streamed(http: TestClient) -> None:
    def parts() -> Iterator[bytes]:
        for _ in range(40):
            yield b"x" * 100_000

    assert http.post("/size", content=parts()).json() == 4_000_000
    assert http.post("/size", content=b"y" * 3_000_000).json() == 3_000_000
    lines = http.get("/stream", params={"n": 5000}).text.splitlines()
    assert lines == [str(i) for i in range(5000)]


def test_head_and_background_tasks_work(http: TestClient) -> None:
    assert http.post("/later").json() == "accepted"
    assert http.head("/double?x=1").status_code == 405


def test_websockets_go_through_the_front_door(http: TestClient) -> None:
    with http.websocket_connect("/chat", subprotocols=["v2", "v1"]) as socket:
        assert str(socket.accepted_subprotocol) == "v2"
        socket.send_text("21")
        assert socket.receive_text() == "42"
        socket.send_text("double")
        assert socket.receive_bytes() == b"x" * 300_000
        socket.send_text("end")
        with pytest.raises(WebSocketDisconnect) as closed:
            socket.receive_text()
        assert (closed.value.code, closed.value.reason) == (4000, "enough")


def test_a_refused_websocket_is_a_response(http: TestClient) -> None:
    session = http.websocket_connect("/chat?bye=1")
    with pytest.raises(WebSocketDenialResponse) as refused:
        session.__enter__()
    assert refused.value.status_code == 403


def test_a_time_limit_of_the_front_door_holds(app: Any) -> None:
    with TestClient(asgi_app(request_timeout_s=0.2)) as client:
        assert client.get("/slow").status_code == 408


def test_each_deployment_has_one_replica(app: Any) -> None:
    deployments = serve.status().applications["default"].deployments
    assert {name: one.replica_states for name, one in deployments.items()} == {
        "App": {"RUNNING": 1},
        "Doubler": {"RUNNING": 1},
    }


def test_a_second_application_runs_beside_the_first(app: Any, http: TestClient) -> None:
    other = serve.run(Doubler.bind(10), name="other", route_prefix=None, _local_testing_mode=True)
    assert other.remote(1).result() == 10
    assert http.get("/double", params={"x": 1}).json() == 2
    serve.delete("other")
    assert set(serve.status().applications) == {"default"}


def test_the_latest_application_has_the_route_and_earlier_ones_their_handles(app: Any) -> None:
    first = serve.run(Doubler.bind(3), name="first", route_prefix="/x", _local_testing_mode=True)
    serve.run(Where.bind(), name="second", route_prefix="/x", _local_testing_mode=True)
    with TestClient(asgi_app()) as client:
        assert client.get("/x/y").text == "/x/y"
    assert first.remote(1).result() == 3
    # What was deleted does not come back for its route.
    serve.delete("second")
    serve.run(Where.bind(), name="third", route_prefix="/x", _local_testing_mode=True)
    assert set(serve.status().applications) == {"default", "first", "third"}
    for name in ("first", "third"):
        serve.delete(name)


def test_a_failing_reconfigure_is_reported(app: Any) -> None:
    broken = Doubler.options(user_config={"broken": True}).bind()
    with pytest.raises(RuntimeError, match="no such factor"):
        serve.run(broken, name="broken", route_prefix=None, _local_testing_mode=True)
    serve.delete("broken")


def test_gpus_and_environments_only_warn(app: Any, caplog: pytest.LogCaptureFixture) -> None:
    options = {"num_gpus": 4, "runtime_env": {"env_vars": {"A": "b"}}}
    bound = Doubler.options(ray_actor_options=options).bind()
    assert serve.run(bound, name="gpu", route_prefix=None, _local_testing_mode=True) is not None
    assert "have no effect" in caplog.text
    serve.delete("gpu")


def test_an_application_in_processes_cannot_run_beside(app: Any) -> None:
    with pytest.raises(InstanceError, match="call remora"):
        serve.run(Doubler.bind(), name="real")


def test_nothing_is_left_after_a_shutdown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REMORA_HOME", str(tmp_path))
    serve.shutdown()
    serve.run(Doubler.bind(), route_prefix=None, _local_testing_mode=True)
    names = {thread.name for thread in threading.enumerate()}
    assert "remora-local" in names
    serve.shutdown()
    assert "remora-local" not in {t.name for t in threading.enumerate() if t.is_alive()}
    with pytest.raises(RemoraError):
        serve.get_replica_context()


@serve.deployment(graceful_shutdown_timeout_s=0.05)
class Stubborn:
    async def __call__(self) -> None:
        STUBBORN_RUNS.set()
        while not STUBBORN_MAY_END.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)


STUBBORN_RUNS, STUBBORN_MAY_END = threading.Event(), threading.Event()


def test_a_handler_that_swallows_its_cancellation_holds_no_shutdown_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("remora.local_testing.EXIT_LIMIT_S", 0.2)
    serve.shutdown()
    try:
        handle = serve.run(Stubborn.bind(), route_prefix=None, _local_testing_mode=True)
        call = handle.remote()
        assert STUBBORN_RUNS.wait(5)
        ending = threading.Thread(target=serve.shutdown, daemon=True)
        ending.start()
        ending.join(10)
        assert not ending.is_alive()
        assert "Stubborn.__call__" in caplog.text
        assert "swallow CancelledError" in caplog.text
        # Another instance has nothing to do with what is left behind.
        other = serve.run(Doubler.bind(), route_prefix=None, _local_testing_mode=True)
        assert other.remote(2).result() == 4
        with pytest.raises(RemoraError):
            call.result(timeout_s=5)
    finally:
        STUBBORN_MAY_END.set()
        serve.shutdown()


async def ask_door(door: Any, receive: Any = None, method: str = "GET") -> list[dict[str, Any]]:
    """Send a request as an ASGI client does; returns what came back."""
    parts = iter([{"type": "http.request", "body": b"", "more_body": False}])
    answer: list[dict[str, Any]] = []

    async def say() -> dict[str, Any]:
        for part in parts:
            return part
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: dict[str, Any]) -> None:
        answer.append(message)

    scope = {
        "type": "http",
        "method": method,
        "path": "/",
        "raw_path": b"/",
        "query_string": b"",
        "headers": [],
    }
    async with asyncio.timeout(5):
        await door(scope, receive or say, send)
    return answer


@serve.deployment
class Sink:
    async def __call__(self, request: StarletteRequest) -> str:
        return str(len(await request.body()))


def test_what_a_client_raises_in_the_middle_of_its_upload_comes_out_of_the_app() -> None:
    serve.shutdown()
    serve.run(Sink.bind(), _local_testing_mode=True)
    parts = iter([{"type": "http.request", "body": b"a", "more_body": True}])

    async def receive() -> dict[str, Any]:
        for part in parts:
            return part
        raise ValueError("no more of it")

    with pytest.raises(ValueError, match="no more of it"):
        asyncio.run(ask_door(asgi_app(), receive, "POST"))
    serve.shutdown()


def test_the_front_door_follows_to_the_next_instance_on_the_same_loop(
    caplog: pytest.LogCaptureFixture,
) -> None:
    serve.shutdown()
    serve.run(Sink.bind(), _local_testing_mode=True)
    door = asgi_app()
    with asyncio.Runner() as runner:
        assert runner.run(ask_door(door))[0]["status"] == 200
        serve.shutdown()
        with pytest.raises(InstanceError):
            runner.run(ask_door(door))
        serve.run(Sink.bind(), _local_testing_mode=True)
        assert runner.run(ask_door(door))[0]["status"] == 200
    serve.shutdown()
    assert "access log" not in caplog.text


def test_the_front_door_keeps_nothing_of_loops_that_are_closed() -> None:
    serve.shutdown()
    serve.run(Sink.bind(), _local_testing_mode=True)
    door = asgi_app()
    loops: weakref.WeakSet[asyncio.AbstractEventLoop] = weakref.WeakSet()

    async def ask() -> None:
        loops.add(asyncio.get_running_loop())
        assert (await ask_door(door))[0]["status"] == 200

    for _ in range(4):
        asyncio.run(ask())
    gc.collect()
    # The last one goes when the next one comes.
    assert len(loops) <= 1
    serve.shutdown()


@serve.deployment
class Batcher:
    def __init__(self) -> None:
        self.gate = asyncio.Event()

    @serve.batch(max_batch_size=3)
    async def __call__(self, values: list[int]) -> list[tuple[int, int]]:
        await self.gate.wait()
        return [(value * 2, len(values)) for value in values]

    async def open(self) -> None:
        self.gate.set()


@serve.deployment
class Models:
    def __init__(self) -> None:
        self.loads: list[str] = []

    @serve.multiplexed(max_num_models_per_replica=2)
    async def get(self, model_id: str) -> str:
        self.loads.append(model_id)
        return model_id.upper()

    async def __call__(self) -> tuple[str, str, list[str]]:
        model_id = serve.get_multiplexed_model_id()
        return model_id, await self.get(model_id), list(self.loads)


def test_batches_and_models_work() -> None:
    serve.shutdown()
    batches = serve.run(Batcher.bind(), route_prefix=None, _local_testing_mode=True)
    # What comes while a batch is worked on is the next one, so one of them has several.
    responses = [batches.remote(value) for value in range(4)]
    batches.open.remote().result(timeout_s=5)
    values, sizes = zip(*(response.result(timeout_s=5) for response in responses), strict=True)
    assert values == (0, 2, 4, 6)
    assert max(sizes) > 1
    models = serve.run(Models.bind(), name="models", route_prefix=None, _local_testing_mode=True)
    for model, loads in [("a", "a"), ("b", "ab"), ("a", "ab"), ("c", "abc"), ("b", "abcb")]:
        chosen = models.options(multiplexed_model_id=model)
        assert chosen.remote().result() == (model, model.upper(), list(loads))
    serve.shutdown()
