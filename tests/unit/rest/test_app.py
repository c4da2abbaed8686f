"""The REST API over a controller that is not there."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import msgspec
import pytest

from remora.config_file.declaration import MAX_CONFIG_BYTES
from remora.control.pulse import Pulse
from remora.core.autoscale.record import ScalingRecord
from remora.engine.admin_token import is_loopback
from remora.errors import (
    ExternalScalerDisabledError,
    InstanceError,
    ReleaseError,
    RemoraError,
    RouteTakenError,
    UnknownTargetError,
)
from remora.rest.app import make_app
from remora.rest.details import instance_details
from remora.rest.guard import Guard, Rules
from remora.types import DeploymentID, NodeID
from remora.wire.control import (
    ApplicationStatus,
    ConfigRequest,
    DeadReplica,
    DeploymentStatus,
    InstanceStatus,
    NodeStatus,
    ProcessView,
    ReplicaStatus,
)
from remora.wire.health import ControllerHealth
from remora.wire.plan import Plan
from remora.wire.releases import Release
from remora.wire.scaling import ScalingDetail

APPLICATIONS = "/api/serve/applications/"
JSON = {"content-type": "application/json"}
CONFIG = {"applications": [{"name": "a", "import_path": "server:app"}]}


def application(name: str, source: str) -> ApplicationStatus:
    replica = ReplicaStatus(replica_id=f"{name}/D#1", state="RUNNING", pid=7, node_id="n2")
    deployment = DeploymentStatus(
        name="D",
        status="HEALTHY",
        status_trigger="CONFIG_UPDATE_COMPLETED",
        message="",
        target_num_replicas=1,
        replica_states={"RUNNING": 1},
        replicas=(replica,),
        recent_dead_replicas=(
            DeadReplica(
                replica_id=f"{name}/D#0",
                pid=6,
                started_at_unix_s=1.0,
                ended_at_unix_s=2.0,
                reason="leave (scale-down)",
            ),
        ),
        calls=(DeploymentID("E", name), DeploymentID("F", "other")),
        required_resources={"CPU": 2.0},
    )
    return ApplicationStatus(
        name=name,
        status="RUNNING",
        message="",
        route_prefix=f"/{name}",
        last_deployed_time_s=1.0,
        deployments={"D": deployment},
        source=source,
        ingress="D",
    )


DECISION = ScalingRecord(
    at_unix_s=1.0,
    before=1,
    after=2,
    running=1,
    queued=0.0,
    ongoing=4.0,
    total=4.0,
    window_s=1.0,
    aggregation="mean",
    policy="default",
    formula="4 / 2",
    asked=2.0,
)


class FakeControl:
    """What the routes ask, written down."""

    def __init__(self) -> None:
        self.submitted: list[ConfigRequest] = []
        self.deleted: list[str] = []
        self.scaled: list[tuple[str, str, int]] = []
        self.refuses: RemoraError | None = None

    def _answer(self) -> None:
        if self.refuses is not None:
            raise self.refuses

    async def status(self) -> InstanceStatus:
        self._answer()
        return InstanceStatus(
            home="/home",
            http_url="http://127.0.0.1:8000",
            controller_pid=1,
            supervisor_pid=2,
            proxies=(ProcessView(name="proxy-1", pid=3, status="HEALTHY"),),
            applications={
                "a": application("a", "declarative"),
                "b": application("b", "imperative"),
            },
            target_capacity=50.0,
        )

    async def configs(self) -> dict[str, bytes]:
        return {"a": json.dumps(CONFIG["applications"][0]).encode()}

    async def scaling(self) -> tuple[ScalingDetail, ...]:
        return tuple(
            ScalingDetail(
                app_name=name,
                deployment="D",
                by=by,
                status="STABLE",
                target_num_replicas=1,
                running=1,
                low=1,
                high=4,
                decisions=(DECISION,),
            )
            for name, by in (("a", "demand"), ("b", "options"))
        )

    async def health(self) -> ControllerHealth:
        pulse = Pulse()
        pulse.begins(10.0)
        pulse.ends(10.5, 0.25, 0.125)
        return pulse.health(20.0, 120.0, 100.0, memory_bytes=2**20)

    async def submit(self, request: ConfigRequest) -> int:
        self._answer()
        self.submitted.append(request)
        return 1

    async def plan(self, request: ConfigRequest) -> Plan:
        return Plan()

    async def delete(self, names: list[str]) -> None:
        self.deleted += names

    async def releases(self) -> list[Release]:
        return [
            Release(number=1, unix_s=0, kind="config", source="x", applications=("a",), said=b"{}")
        ]

    async def roll_back(self, number: int) -> int:
        self._answer()
        return number + 1

    async def scale(self, app_name: str, deployment: str, num_replicas: int) -> None:
        self._answer()
        self.scaled.append((app_name, deployment, num_replicas))

    async def metrics(self) -> str:
        return "# TYPE x gauge\nx 1\n"


@pytest.fixture
def control() -> FakeControl:
    return FakeControl()


HERE = Rules()


def app_of(control: FakeControl, rules: Rules = HERE) -> Guard:
    @asynccontextmanager
    async def connect() -> AsyncIterator[FakeControl]:
        yield control

    options = {"http": {"port": 8000, "ssl_keyfile_password": "secret"}, "node_id": "here"}
    return make_app(connect, options, rules, "1.2.3")


def client_of(
    control: FakeControl, rules: Rules = HERE, client: Any = ("127.0.0.1", 1)
) -> httpx2.AsyncClient:
    transport = httpx2.ASGITransport(app=app_of(control, rules), client=client)
    return httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1:8265")


@pytest.fixture
async def client(control: FakeControl) -> AsyncIterator[httpx2.AsyncClient]:
    async with client_of(control) as made:
        yield made


async def test_get_tells_all_in_the_shape_of_the_reference(client: httpx2.AsyncClient) -> None:
    details = (await client.get(APPLICATIONS)).json()
    app = details["applications"]["a"]
    assert (app["name"], app["status"], app["route_prefix"]) == ("a", "RUNNING", "/a")
    assert app["deployed_app_config"] == CONFIG["applications"][0]
    assert details["applications"]["b"]["deployed_app_config"] is None
    deployment = app["deployments"]["D"]
    assert deployment["target_num_replicas"] == 1
    assert deployment["required_resources"] == {"CPU": 2.0}
    scaling = deployment["autoscaling_detail"]
    assert (scaling["scaling_status"], scaling["metrics_health"]) == ("STABLE", "healthy")
    (decision,) = scaling["decisions"]
    assert (decision["prev_num_replicas"], decision["curr_num_replicas"]) == (1, 2)
    assert decision["reason"] == "4 / 2"
    assert details["applications"]["b"]["deployments"]["D"]["autoscaling_detail"] is None
    assert deployment["replicas"][0]["replica_id"] == "a/D#1"
    # As the files in the folder of the logs are called.
    assert deployment["replicas"][0]["log_file_path"] == "replica_a+D+1.log"
    assert details["proxies"]["proxy-1"]["log_file_path"] == "proxy-1.log"
    assert deployment["replicas"][0]["pid"] == 7
    assert details["proxies"]["proxy-1"]["status"] == "HEALTHY"
    (dead,) = deployment["recent_dead_replicas"]
    assert (dead["replica_id"], dead["state"], dead["pid"]) == ("a/D#0", "STOPPED", 6)
    assert (dead["start_time_s"], dead["end_time_s"]) == (1.0, 2.0)
    assert (dead["reason"], dead["log_file_path"]) == ("leave (scale-down)", "replica_a+D+0.log")
    assert app["deployment_topology"] == {
        "app_name": "a",
        "ingress_deployment": "D",
        "nodes": {
            "D": {
                "name": "D",
                "app_name": "a",
                "is_ingress": True,
                "outbound_deployments": [
                    {"name": "E", "app_name": "a"},
                    {"name": "F", "app_name": "other"},
                ],
            }
        },
    }
    health = details["controller_health_metrics"]
    assert (health["timestamp"], health["uptime_s"], health["num_control_loops"]) == (120, 20, 1)
    assert health["loop_duration_s"] == {"mean": 0.5, "std": 0, "min": 0.5, "max": 0.5}
    assert health["process_memory_mb"] == 1.0
    assert details["target_capacity"] == 50.0
    (group,) = details["target_groups"]
    assert (group["protocol"], group["targets"][0]["port"]) == ("HTTP", 8000)
    # Every application is behind the front door.
    assert (group["route_prefix"], group["app_name"]) == ("/", "")
    assert details["proxy_location"] == "EveryNode"
    assert details["restores_unset_config_options"] is True
    assert "secret" not in json.dumps(details)


async def test_only_what_is_known_of_nodes_is_said(control: FakeControl) -> None:
    async def told(options: dict[str, Any], **changes: Any) -> dict[str, Any]:
        return instance_details(
            msgspec.structs.replace(await control.status(), **changes),
            await control.configs(),
            await control.scaling(),
            options,
            await control.health(),
        )

    def nodes(details: dict[str, Any]) -> list[str | None]:
        deployment = details["applications"]["a"]["deployments"]["D"]
        every = [*deployment["replicas"], *deployment["recent_dead_replicas"]]
        return [each["node_id"] for each in (details["controller_info"], *every)]

    one_machine = await told({"node_id": "here"})
    assert nodes(one_machine) == ["here", "here", "here"]
    node = NodeStatus(node_id=NodeID("n2"), host="10.0.0.1", refusal="another version")
    cluster = await told({"proxy_location": "HeadOnly"}, nodes=(node,))
    assert cluster["proxy_location"] == "HeadOnly"
    # Of one that has ended an older controller may not have said it.
    assert nodes(cluster) == [None, "n2", None]
    assert nodes(await told({}, controller_node_id="n1")) == ["n1", "n2", None]
    (replica,) = cluster["applications"]["a"]["deployments"]["D"]["replicas"]
    assert (replica["node_ip"], replica["actor_name"]) == ("10.0.0.1", replica["replica_id"])
    assert cluster["nodes"][0]["refusal"] == "another version"
    for host, where in (("127.0.0.1", "EveryNode"), (None, "Disabled")):
        without_proxies = await told({"http": {"host": host}}, proxies=())
        assert without_proxies["proxy_location"] == where
    # Proxies say themselves where they are.
    assert cluster["proxies"]["proxy-1"]["node_id"] == "local"


@pytest.mark.parametrize(
    ("by", "expected"),
    [("outside", {"a": True, "b": True}), ("options", {"a": True, "b": None})],
)
async def test_who_sets_the_numbers_is_told_as_far_as_it_is_known(
    by: str, expected: dict[str, bool | None], control: FakeControl
) -> None:
    scaling = [msgspec.structs.replace(each, by=by) for each in await control.scaling()]
    configs = {"a": b'{"external_scaler_enabled": true}'}
    details = instance_details(await control.status(), configs, scaling, {}, await control.health())
    found = {name: app["external_scaler_enabled"] for name, app in details["applications"].items()}
    assert found == expected


async def test_get_can_be_filtered(client: httpx2.AsyncClient) -> None:
    for source, names in (("declarative", {"a"}), ("IMPERATIVE", {"b"})):
        details = (await client.get(APPLICATIONS, params={"api_type": source})).json()
        assert set(details["applications"]) == names
    answer = await client.get(APPLICATIONS, params={"api_type": "other"})
    assert answer.status_code == 400
    assert "api_type='other'" in answer.json()["error"]


async def test_put_hands_the_config_in(client: httpx2.AsyncClient, control: FakeControl) -> None:
    answer = await client.put(APPLICATIONS, json=CONFIG)
    assert (answer.status_code, answer.content) == (200, b"")
    (request,) = control.submitted
    assert request.source == "REST"
    assert request.applications[0].name == "a"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"\xff", "not JSON"),
        (b"[]", "the config must be a mapping"),
        (b'{"applications": [{"imprt_path": "x"}]}', "Did you mean 'import_path'?"),
        (
            b'{"applications": [{"import_path": "a:b", "runtime_env": {"working_dir": "x"}}]}',
            "applications[0].runtime_env.working_dir: 'x' is not allowed: must be an absolute path",
        ),
        (
            b'{"applications": [{"import_path": "a:b", "runtime_env": {"working_dir": "/none"}}]}',
            "applications[0].runtime_env.working_dir: '/none' is not allowed: is neither a folder",
        ),
    ],
)
async def test_a_wrong_config_is_refused_with_all_that_is_wrong(
    body: bytes, said: str, client: httpx2.AsyncClient, control: FakeControl
) -> None:
    for method, path in (("PUT", APPLICATIONS), ("POST", "/api/remora/plan")):
        answer = await client.request(method, path, content=body, headers=JSON)
        assert answer.status_code == 400
        assert said in answer.json()["error"]
        assert answer.json()["problems"]
    assert control.submitted == []


async def test_a_body_that_is_too_large_is_not_read(
    client: httpx2.AsyncClient, control: FakeControl
) -> None:
    taken = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal taken
        for _ in range(1000):
            taken += 100_000
            yield b" " * 100_000

    answer = await client.put(APPLICATIONS, content=endless(), headers=JSON)
    assert answer.status_code == 413
    assert str(MAX_CONFIG_BYTES) in answer.json()["error"]
    said = {**JSON, "content-length": "100000000"}
    assert (await client.put(APPLICATIONS, headers=said, content=b"")).status_code == 413
    scale = "/api/v1/applications/a/deployments/D/scale"
    large = await client.post(scale, content=b" " * (MAX_CONFIG_BYTES + 1), headers=JSON)
    assert large.status_code == 413
    assert control.submitted == []


async def test_a_plan_ends_when_its_client_leaves() -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    class Slow(FakeControl):
        async def plan(self, request: ConfigRequest) -> Plan:
            begun.set()
            try:
                await asyncio.Event().wait()
                raise AssertionError("nothing sets it")
            finally:
                ended.set()

    messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    messages.put_nowait({"type": "http.request", "body": json.dumps(CONFIG).encode()})
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/api/remora/plan",
        "query_string": b"",
        "headers": [],
    }
    async with asyncio.timeout(10):
        asking = asyncio.create_task(app_of(Slow())(scope, messages.get, send))
        await begun.wait()
        messages.put_nowait({"type": "http.disconnect"})
        await ended.wait()
        await asking
    assert sent[0]["status"] == 499


async def test_delete_deletes_every_application(
    client: httpx2.AsyncClient, control: FakeControl
) -> None:
    assert (await client.delete(APPLICATIONS)).status_code == 200
    assert control.deleted == ["a", "b"]


async def test_scaling_from_outside(client: httpx2.AsyncClient, control: FakeControl) -> None:
    path = "/api/v1/applications/a/deployments/D/scale"
    answer = await client.post(path, json={"target_num_replicas": 3})
    assert answer.status_code == 200
    assert "message" in answer.json()
    assert control.scaled == [("a", "D", 3)]
    wrongs: list[Any] = [
        *({"target_num_replicas": number} for number in (-1, True, 1e300, 2**31, "3")),
        *({}, [], 3),
    ]
    for wrong in wrongs:
        assert (await client.post(path, json=wrong)).status_code == 400
    assert (await client.post(path, content=b"{", headers=JSON)).status_code == 400


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UnknownTargetError("none"), 404),
        (ExternalScalerDisabledError("no"), 412),
        (InstanceError("gone"), 503),
        (RouteTakenError("taken"), 409),
        (ReleaseError("none"), 404),
        (RemoraError("odd"), 500),
    ],
)
async def test_errors_have_their_status(
    error: RemoraError, status: int, client: httpx2.AsyncClient, control: FakeControl
) -> None:
    control.refuses = error
    answer = await client.post(
        "/api/v1/applications/a/deployments/D/scale", json={"target_num_replicas": 3}
    )
    assert answer.status_code == status
    body = answer.json()
    assert (body["error"], body["problems"]) == (str(error), [])
    # Of what nobody expects, there is nothing to say but what it says itself.
    assert bool(body["hint"]) == (status != 500)


async def test_releases_and_the_way_back(client: httpx2.AsyncClient) -> None:
    (release,) = (await client.get("/api/remora/releases")).json()["releases"]
    assert (release["number"], release["said"]) == (1, {})
    answer = await client.post("/api/remora/rollback", json={"release": 4})
    assert answer.json() == {"release": 5}
    assert (await client.post("/api/remora/rollback", json={"release": "x"})).status_code == 400


async def test_what_it_says_of_itself(client: httpx2.AsyncClient) -> None:
    described = (await client.get("/openapi.json")).json()
    assert described["info"]["version"] == "1.2.3"
    page = (await client.get("/docs")).text
    for path in described["paths"]:
        assert path in page
    assert "http" not in page.replace("https://", "http")
    assert (await client.get("/api/remora/schema")).json()["title"] == "Remora config"
    assert (await client.get("/api/ray/version")).json()["ray_version"] == "1.2.3"
    metrics = await client.get("/metrics")
    assert metrics.headers["content-type"].startswith("text/plain; version=0.0.4")


async def test_every_described_route_is_there_and_no_other(client: httpx2.AsyncClient) -> None:
    described = (await client.get("/openapi.json")).json()
    for path, operations in described["paths"].items():
        for method in ("get", "put", "post", "delete"):
            answer = await client.request(method, path.replace("{", "").replace("}", ""))
            assert (answer.status_code == 405) == (method not in operations), (method, path)
    assert (await client.get("/api/serve/applications")).status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "status", "hint"),
    [
        ("GET", "/api/serve/applications", 404, "Did you mean '/api/serve/applications/'?"),
        ("PUT", "/api/serve/application/", 404, "It takes DELETE, GET, HEAD, PUT."),
        (
            "POST",
            "/api/v1/applications/shop/deployments/D/scales",
            404,
            "Did you mean '/api/v1/applications/shop/deployments/D/scale'? It takes POST.",
        ),
        ("GET", "/metric", 404, "Did you mean '/metrics'?"),
        ("GET", "/", 404, "/openapi.json lists all paths"),
        ("GET", "/%00/%ff", 404, "/openapi.json lists all paths"),
        ("GET", "/" + "x" * 5000, 404, "/openapi.json lists all paths"),
        ("POST", "/api/serve/applications/", 405, "It takes DELETE, GET, HEAD, PUT."),
        ("OPTIONS", "/metrics", 405, "It takes GET, HEAD."),
        ("NONSENSE", "/docs", 405, "It takes GET, HEAD."),
    ],
)
async def test_what_is_no_route_is_told_with_the_nearest_one(
    method: str, path: str, status: int, hint: str, client: httpx2.AsyncClient
) -> None:
    answer = await client.request(method, path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert set(body) == {"error", "hint", "problems"}
    assert hint in body["hint"]
    if status == 405:
        assert answer.headers["allow"] in body["hint"]
        assert method in body["error"]


async def test_a_crash_is_json_too(control: FakeControl) -> None:
    class Broken(FakeControl):
        async def releases(self) -> list[Release]:
            raise LookupError("secret")

    transport = httpx2.ASGITransport(
        app=app_of(Broken()), client=("127.0.0.1", 1), raise_app_exceptions=False
    )
    async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        answer = await client.get("/api/remora/releases")
    assert answer.status_code == 500
    assert "LookupError" in answer.json()["error"]
    assert "admin.log" in answer.json()["hint"]
    assert "secret" not in answer.text


async def test_more_requests_than_may_be_are_refused() -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    class Slow(FakeControl):
        async def releases(self) -> list[Release]:
            begun.set()
            await go_on.wait()
            return []

    async with asyncio.timeout(10), client_of(Slow(), Rules(max_requests=1)) as client:
        asking = asyncio.create_task(client.get("/api/remora/releases"))
        await begun.wait()
        answer = await client.get("/docs")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert set(answer.json()) == {"error", "hint", "problems"}
        go_on.set()
        assert (await asking).status_code == 200
        assert (await client.get("/docs")).status_code == 200


async def test_others_show_the_token(control: FakeControl) -> None:
    rules = Rules("0.0.0.0", "right")
    async with client_of(control, rules, ("10.0.0.1", 1)) as client:
        for shown in (None, "Bearer wrong", "Basic right", "Bearer ", "Bearer é"):
            headers = {b"authorization": shown.encode()} if shown is not None else {}
            for method, path in (("PUT", APPLICATIONS), ("GET", "/docs"), ("GET", "/nope")):
                answer = await client.request(method, path, headers=headers, json=CONFIG)
                assert answer.status_code == 401
                assert "right" not in answer.text
        headers = {b"authorization": b"bearer right"}
        assert (await client.put(APPLICATIONS, headers=headers, json=CONFIG)).status_code == 200
    assert len(control.submitted) == 1


async def test_over_the_unix_socket_nobody_shows_anything(control: FakeControl) -> None:
    async with client_of(control, Rules("0.0.0.0", "right"), None) as client:
        assert (await client.get(APPLICATIONS)).status_code == 200
        odd = {"host": "anything"}
        assert (await client.get(APPLICATIONS, headers=odd)).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "evil.example"},
        {"host": "evil.example:8265"},
        # Somebody's name that leads to this machine.
        {"host": "127.evil.example:8265"},
        {"host": "127.0.0.1.evil.example"},
        {"host": "["},
        # Other pages of this machine.
        {"origin": "http://127.0.0.1:8000"},
        {"origin": "http://127.0.0.1"},
        {"origin": "https://127.0.0.1:8265"},
        {"origin": "http://localhost:8265"},
        {"origin": "http://["},
        {"origin": "https://evil.example"},
        {"origin": "null"},
    ],
)
async def test_pages_of_others_cannot_use_a_browser_here(
    headers: dict[str, str], client: httpx2.AsyncClient, control: FakeControl
) -> None:
    answer = await client.put(APPLICATIONS, headers=headers, json=CONFIG)
    assert answer.status_code == 403
    assert control.submitted == []


async def test_a_page_of_its_own_may(client: httpx2.AsyncClient) -> None:
    own = {"origin": "http://127.0.0.1:8265"}
    assert (await client.put(APPLICATIONS, headers=own, json=CONFIG)).status_code == 200
    assert (await client.get("/docs", headers={"host": "localhost:8265"})).status_code == 200


@pytest.mark.parametrize("kind", [None, "text/plain", "text/plain; application/json", "text/json"])
async def test_what_a_browser_sends_without_asking_is_no_body(
    kind: str | None, client: httpx2.AsyncClient, control: FakeControl
) -> None:
    async def streamed() -> AsyncIterator[bytes]:
        yield json.dumps({"target_num_replicas": 3}).encode()

    headers = {"content-type": kind} if kind is not None else {}
    path = "/api/v1/applications/a/deployments/D/scale"
    for body in (json.dumps({"target_num_replicas": 3}).encode(), streamed()):
        answer = await client.post(path, content=body, headers=headers)
        assert answer.status_code == 415
        assert "application/json" in answer.json()["error"]
    assert control.scaled == []


async def test_over_the_unix_socket_a_body_may_say_nothing_of_itself(control: FakeControl) -> None:
    async with client_of(control, client=None) as client:
        body = json.dumps(CONFIG).encode()
        assert (await client.put(APPLICATIONS, content=body)).status_code == 200


def test_an_address_that_others_reach_without_a_token_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"0\.0\.0\.0.*token"):
        Rules("0.0.0.0", "")


def test_addresses_that_only_this_machine_reaches() -> None:
    assert is_loopback("127.0.0.1")
    assert is_loopback("127.8.8.8")
    assert is_loopback("::1")
    assert is_loopback("localhost")
    assert not is_loopback("0.0.0.0")
    assert not is_loopback("127.evil.example")
    assert not is_loopback("")
    assert not is_loopback("192.168.0.1")
