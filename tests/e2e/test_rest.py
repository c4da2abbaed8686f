"""The REST API of a real instance: started when it is first asked, on both its sockets."""

from __future__ import annotations

import asyncio
import shutil
import stat
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.e2e.conftest import StartInstance
from tests.e2e.instances import Instance
from tests.e2e.processes import kill
from tests.e2e.waiting import until_async

from remora.config import AdminOptions
from remora.engine.admin_token import token_file
from remora.errors import ConfigFileError, RemoraError
from remora.submission_client import ServeSubmissionClient

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(60)]

APPLICATIONS = "/api/serve/applications/"
#: Gives the pids of the processes of the REST API.
FindAdmin = Callable[[], list[int]]


@pytest.fixture
async def client(shared: Instance) -> AsyncIterator[httpx2.AsyncClient]:
    transport = httpx2.AsyncHTTPTransport(uds=str(shared.home.admin_socket))
    # On a busy machine the process that answers takes its time to come.
    async with httpx2.AsyncClient(
        transport=transport, base_url="http://remora", timeout=20.0
    ) as made:
        yield made


@pytest.fixture
def wanted(tmp_path: Path) -> dict[str, Any]:
    """A config of one application, whose code is in a folder of its own."""
    shutil.copy(Path(__file__).with_name("rest_server.py"), tmp_path)
    app = {
        "name": "rest",
        "route_prefix": "/rest",
        "import_path": "rest_server:app",
        "runtime_env": {"working_dir": str(tmp_path)},
    }
    return {"applications": [app]}


@pytest.fixture
def served(start_instance: StartInstance) -> Instance:
    """An instance that has a port for the REST API."""
    return start_instance(admin=AdminOptions(port=0))


@pytest.fixture
def find_admin(shared: Instance) -> FindAdmin:
    def find() -> list[int]:
        return [
            pid
            for pid in shared.members()
            if b"remora: admin" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]

    return find


@pytest.mark.local_only("Ray is given no folders of one node")
async def test_a_config_is_put_served_and_deleted(
    shared: Instance, client: httpx2.AsyncClient, wanted: dict[str, Any]
) -> None:
    answer = await client.put(APPLICATIONS, json=wanted)
    assert answer.status_code == 200, answer.text

    async def status(expected: str | None) -> bool:
        found = (await client.get(APPLICATIONS)).json()["applications"].get("rest")
        return (found["status"] if found is not None else None) == expected

    async def calls(caller: str, callee: str) -> bool:
        app = (await client.get(APPLICATIONS)).json()["applications"]["rest"]
        node = app["deployment_topology"]["nodes"][caller]
        return {"name": callee, "app_name": "rest"} in node["outbound_deployments"]

    await until_async(lambda: status("RUNNING"), "it runs", 20.0)
    async with httpx2.AsyncClient() as plain:
        assert (await plain.get(f"{shared.url}/rest")).text == "hello"
    await until_async(lambda: calls("Greeter", "Words"), "it was bound with that", 20.0)
    await until_async(lambda: calls("Words", "Greeter"), "it has called that", 20.0)
    health = (await client.get(APPLICATIONS)).json()["controller_health_metrics"]
    assert health["num_control_loops"] > 0
    assert health["process_memory_mb"] > 1
    metrics = (await client.get("/metrics")).text
    assert 'serve_application_status{application="rest"}' in metrics
    plan = (await client.post("/api/remora/plan", json=wanted)).json()
    assert [each["action"] for each in plan["applications"]] == ["none"]
    wanted["applications"][0]["import_path"] = "rest_server:nothing"
    await client.put(APPLICATIONS, json=wanted)
    await until_async(lambda: status("DEPLOY_FAILED"), "it cannot be imported", 20.0)
    assert (await client.delete(APPLICATIONS)).status_code == 200
    await until_async(lambda: status(None), "it is gone", 20.0)


async def test_it_comes_back_when_it_dies(
    shared: Instance, client: httpx2.AsyncClient, find_admin: FindAdmin
) -> None:
    await client.get("/docs")
    async with httpx2.AsyncClient() as plain:
        await plain.get(f"{shared.url}/-/healthz")
    (first,) = find_admin()
    kill(first)
    # The kernel keeps the connection until its successor takes it.
    transport = httpx2.AsyncHTTPTransport(uds=str(shared.home.admin_socket))
    async with httpx2.AsyncClient(
        transport=transport, base_url="http://remora", timeout=20.0
    ) as again:
        assert (await again.get("/docs")).status_code == 200
    assert first not in find_admin()


async def test_on_an_address_that_others_reach_it_needs_its_token(
    start_instance: StartInstance,
) -> None:
    instance = start_instance(admin=AdminOptions(host="0.0.0.0", port=0))
    url = (await instance.status()).admin_url
    async with httpx2.AsyncClient(base_url=url) as client:
        assert (await client.get(APPLICATIONS, timeout=20.0)).status_code == 401
        file = token_file(instance.home)
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        headers = {"authorization": f"Bearer {file.read_text().strip()}"}
        assert (await client.get(APPLICATIONS, headers=headers)).status_code == 200


async def test_the_client_of_ray_serves_users(served: Instance, wanted: dict[str, Any]) -> None:
    client = ServeSubmissionClient((await served.status()).admin_url)

    def operate() -> None:
        assert client.get_version()
        client.deploy_applications(wanted)
        with pytest.raises(ConfigFileError, match="Did you mean 'import_path'"):
            client.deploy_applications({"applications": [{"imprt_path": "a:b"}]})
        details = client.get_serve_details()
        assert details["applications"]["rest"]["source"] == "declarative"
        client.delete_applications()

    await asyncio.to_thread(operate)

    async def gone() -> bool:
        return not (await served.status()).applications

    await until_async(gone, "it is gone", 20.0)
    nobody = ServeSubmissionClient("http://127.0.0.1:9")
    with pytest.raises(RemoraError, match="Nobody answers"):
        await asyncio.to_thread(nobody.get_version)


def test_the_client_refuses_what_has_no_meaning() -> None:
    with pytest.raises(ValueError, match="must begin with http"):
        ServeSubmissionClient("ray://host:1")
    with pytest.raises(ValueError, match="no meaning"):
        ServeSubmissionClient("http://host:1", create_cluster_if_needed=True)
