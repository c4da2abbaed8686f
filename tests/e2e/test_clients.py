"""Real clients: a browser, curl, and plain HTTP clients with bodies of a gigabyte."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import httpx2
import psutil
import pytest
from tests.e2e.client_app import Clients
from tests.e2e.conftest import StartInstance
from tests.e2e.instances import Instance

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(90)]

GIGABYTE = 1 << 30
#: What the proxy's memory may rise by while a gigabyte goes through it.
ALLOWED_RISE_BYTES = 50 << 20


async def output_of(*command: str, limit_s: float = 30.0) -> str:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        out, _ = await asyncio.wait_for(process.communicate(), limit_s)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, out.decode()
    return out.decode()


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium; .ci/run installs it")
async def test_a_browser_streams_events_and_holds_a_websocket(
    shared: Instance, tmp_path: Path
) -> None:
    async with shared.running(Clients.bind(), "browser") as url, httpx2.AsyncClient() as client:
        report = asyncio.create_task(client.get(f"{url}/report", timeout=60))
        browser = await asyncio.create_subprocess_exec(
            "chromium",
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            f"--user-data-dir={tmp_path}",
            "--remote-debugging-port=0",
            f"{url}/page",
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            seen = (await report).json()
        finally:
            browser.terminate()
            await browser.wait()
    assert seen == {
        "events": [str(i) for i in range(20)],
        "echoes": [f"m{i}" for i in range(20)],
        "chunks": 3_000_000,
        "closed": 1000,
    }


async def test_curl_uses_one_connection_for_several_requests(shared: Instance) -> None:
    async with shared.running(Clients.bind(), "curl") as url:
        out = await output_of(
            "curl", "-sS", "--fail", "-w", "%{num_connects} %{http_version}\n", "-o", "/dev/null",
            f"{url}/page", "-o", "/dev/null", f"{url}/page", "-o", "/dev/null",
            f"{url}/download?size=100000",
        )  # fmt: skip
        assert out.split("\n")[:3] == ["1 1.1", "0 1.1", "0 1.1"]


async def test_curl_reads_server_sent_events_as_they_come(shared: Instance) -> None:
    async with shared.running(Clients.bind(), "sse") as url:
        out = await output_of("curl", "-sSN", "--fail", f"{url}/events?n=3")
    assert out == "data: 0\n\ndata: 1\n\ndata: 2\n\nevent: end\ndata: -\n\n"


async def test_a_gigabyte_goes_up_and_down_in_little_memory(
    start_instance: StartInstance, tmp_path: Path
) -> None:
    instance: Instance = start_instance()
    file = tmp_path / "zeros"
    with file.open("wb") as sparse:
        sparse.truncate(GIGABYTE)
    async with instance.running(Clients.bind(), "large") as url:
        proxies = [psutil.Process(proxy.pid) for proxy in (await instance.status()).proxies]
        before = [proxy.memory_info().rss for proxy in proxies]
        peak = 0
        watching = True

        async def watch() -> None:
            nonlocal peak
            while watching:
                rises = [p.memory_info().rss - b for p, b in zip(proxies, before, strict=True)]
                peak = max(peak, *rises)
                await asyncio.sleep(0.02)

        watcher = asyncio.create_task(watch())
        down = await output_of(
            "curl", "-sS", "--fail", "-o", "/dev/null", "-w", "%{size_download}",
            f"{url}/download?size={GIGABYTE}", limit_s=60,
        )  # fmt: skip
        up = await output_of(
            "curl", "-sS", "--fail", "-T", str(file), "-X", "POST", f"{url}/upload", limit_s=60
        )
        watching = False
        await watcher
    assert int(down) == GIGABYTE
    assert json.loads(up) == {"size": GIGABYTE, "sum": 0}
    assert peak < ALLOWED_RISE_BYTES
