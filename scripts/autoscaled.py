"""Shows that a node of Ray's autoscaler comes for demand, and goes when its replicas are gone.

    python scripts/autoscaled.py

The nodes are further processes of this machine. Ray's own `AutoscalingCluster` begins with `ray stop`,
which ends the Ray of everybody on the machine; here nothing but what was started is ended.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import ray
from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider
from tests.e2e.instances import Instance
from tests.e2e.waiting import until_async

import remora as serve
from remora.build.graph import build
from remora.config import AdminOptions, EngineOptions, HTTPOptions
from remora.control.client import ControlClient

REPOSITORY = Path(__file__).resolve().parents[1]
_BEGAN = time.monotonic()
STORE_BYTES = 80 * 1024 * 1024


class Provider(FakeMultiNodeProvider):  # type: ignore[misc] # ships no types
    """Gives nodes ids that differ from the first letter on, as real ones do."""

    def _next_hex_node_id(self) -> str:
        return secrets.token_hex(28)


def config(gcs_address: str, workers: dict[str, dict[str, Any]], idle_s: float) -> dict[str, Any]:
    """What `ray start --autoscaling-config` reads. Pure."""
    empty: dict[str, Any] = {
        name: []
        for name in (
            "initialization_commands",
            "setup_commands",
            "head_setup_commands",
            "worker_setup_commands",
            "head_start_ray_commands",
            "worker_start_ray_commands",
            "cluster_synced_files",
            "rsync_exclude",
            "rsync_filter",
        )
    }
    head = {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0}
    return {
        **empty,
        "cluster_name": "autoscaled",
        "max_workers": 8,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": idle_s / 60,
        "docker": {},
        "auth": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        "provider": {
            "type": "external",
            "module": "scripts.autoscaled.Provider",
            "gcs_address": gcs_address,
            "launch_multiple": True,
            "use_node_id_as_ip": True,
        },
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": head,
            **{
                name: {
                    "resources": {"object_store_memory": STORE_BYTES, **resources},
                    "node_config": {},
                    "min_workers": 0,
                    "max_workers": 4,
                }
                for name, resources in workers.items()
            },
        },
    }


@contextmanager
def autoscaled(
    folder: Path, workers: dict[str, dict[str, Any]], *, idle_s: float, head_cpus: int = 1
) -> Iterator[str]:
    """Run such a cluster; gives its address.

    Args:
        folder: for what Ray writes; a short path.
        workers: kinds of nodes that may come, with their resources.
        idle_s: a node without anything goes after so long.
        head_cpus: of Ray's head.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = f"127.0.0.1:{port}"
    path = folder / "autoscaling.json"
    path.write_text(json.dumps(config(address, workers, idle_s)), encoding="utf-8")
    words = (
        "-m ray.scripts.scripts start --head --block --disable-usage-stats --include-dashboard=false "
        f"--node-ip-address=127.0.0.1 --port={port} --num-cpus={head_cpus} "
        f"--object-store-memory={STORE_BYTES} --temp-dir={folder} --autoscaling-config={path}"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (REPOSITORY / "src", REPOSITORY))),
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    }
    process = subprocess.Popen(
        [sys.executable, *words.split()],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield address
    finally:
        end_all_in(folder)
        process.wait(30)


def end_all_in(folder: Path) -> None:
    """Kill a Ray: the nodes that its autoscaler has brought are nobody's children."""
    mark = f"{folder}/".encode()
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and mark in (entry / "cmdline").read_bytes():
                os.kill(int(entry.name), signal.SIGKILL)
        except OSError:
            continue


@serve.deployment(num_replicas=3)
class Wide:
    """Three CPUs, of which the head has one."""

    async def __call__(self) -> str:
        """Answer."""
        return "served"


def say(text: str) -> None:
    """Tell how far it is."""
    print(f"{time.monotonic() - _BEGAN:6.1f} s  {text}", flush=True)


def num_nodes() -> int:
    """How many nodes live."""
    return sum(node["Alive"] for node in ray.nodes())


def join(address: str) -> None:
    """Wait until Ray's head is up, and its own node with it."""
    deadline = time.monotonic() + 90.0
    while True:
        try:
            ray.init(address, namespace="autoscaled", log_to_driver=False, logging_level="ERROR")
            return
        except ConnectionError:
            if time.monotonic() >= deadline:
                raise


async def show(instance: Instance) -> None:
    """Deploy what needs a second node, delete it, and wait until the node is gone again."""
    say(f"an instance is up on {num_nodes()} node")
    async with ControlClient(instance.home) as client:
        await client.deploy([build(Wide.bind(), "wide", None)])
    await instance.wait(lambda now: now.applications["wide"].status == "RUNNING", "it runs", 120.0)
    say(f"3 replicas run on {num_nodes()} nodes")
    for node in (await instance.status()).nodes:
        say(f"  {node.node_id[:12]}: {node.num_replicas} replicas, {node.num_proxies} proxies")
    await instance.delete("wide")
    say("they are deleted")
    await until_async(lambda: asyncio.to_thread(is_left, instance), "agent and proxies left", 90)
    say("agent and proxies have left the second node")
    await until_async(lambda: asyncio.to_thread(lambda: num_nodes() == 1), "it is gone", 90)
    say("Ray's autoscaler has taken it away")


def is_left(instance: Instance) -> bool:
    """Only one node has anything of the instance beside replicas."""
    nodes = asyncio.run(instance.status()).nodes
    return sum(bool(node.agent_pid or node.num_proxies) for node in nodes) == 1


def main() -> None:
    """Run it; an exception says what did not come about."""
    os.environ["RAY_SERVE_PROXY_MIN_DRAINING_PERIOD_S"] = "5"
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    with tempfile.TemporaryDirectory(prefix="remora-a-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        with autoscaled(folder, {"small": {"CPU": 2}}, idle_s=6.0) as address:
            join(address)
            engine = EngineOptions(engine="ray", address=address)
            instance = Instance(
                folder / "home", HTTPOptions(port=0), engine=engine, admin=AdminOptions(port=0)
            )
            try:
                asyncio.run(show(instance))
            finally:
                instance.end()
                ray.shutdown()


if __name__ == "__main__":
    main()
