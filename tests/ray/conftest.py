"""One Ray cluster for all tests here: starting one takes longer than any of them."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster as RayCluster
from tests.e2e.instances import Instance

from remora.config import AdminOptions, EngineOptions, HTTPOptions

REPOSITORY = Path(__file__).resolve().parents[2]
STORE_BYTES = 80 * 1024 * 1024
#: What Ray's own code warns of, which is not ours to change.
_RAYS_WARNINGS = (
    "ignore::DeprecationWarning",
    "ignore::FutureWarning",
    "ignore::ResourceWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    folder = Path(__file__).parent
    for item in items:
        if folder in item.path.parents:
            item.add_marker(pytest.mark.e2e)
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.timeout(60))
            for warning in _RAYS_WARNINGS:
                item.add_marker(pytest.mark.filterwarnings(warning))
    # Last of all: from the first of them on, this process belongs to a cluster.
    items.sort(key=lambda item: folder in item.path.parents)


@pytest.fixture(scope="package")
def instance(cluster: RayCluster) -> Iterator[Instance]:
    """One instance for all tests; each deploys under names of its own."""
    folder = Path(tempfile.mkdtemp(prefix="remora-r-"))
    # Front doors of nodes without replicas go at once.
    os.environ["RAY_SERVE_PROXY_MIN_DRAINING_PERIOD_S"] = "1"
    engine = EngineOptions(engine="ray", address=cluster.address)
    made = Instance(folder, HTTPOptions(port=0), engine=engine, admin=AdminOptions(port=0))
    try:
        yield made
    finally:
        made.end()
        del os.environ["RAY_SERVE_PROXY_MIN_DRAINING_PERIOD_S"]
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def cluster() -> Iterator[RayCluster]:
    """A Ray cluster of one node, which this process belongs to; tests may add nodes."""
    folder = Path(tempfile.mkdtemp(prefix="remora-ray-"))
    before = {name: os.environ.get(name) for name in ("PYTHONPATH", "RAY_DEDUP_LOGS")}
    paths = (REPOSITORY / "src", REPOSITORY, REPOSITORY / "tests" / "e2e")
    os.environ["PYTHONPATH"] = os.pathsep.join(map(str, paths))
    os.environ["RAY_DEDUP_LOGS"] = "0"
    made = RayCluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 4,
            "object_store_memory": STORE_BYTES,
            "include_dashboard": False,
            "temp_dir": str(folder),
            # A node that is gone is known to be gone after seconds, not half a minute.
            "_system_config": {
                "health_check_initial_delay_ms": 1000,
                "health_check_period_ms": 1000,
                "health_check_failure_threshold": 4,
            },
        },
    )
    ray.init(made.address, namespace="tests", logging_level="ERROR", log_to_driver=False)
    try:
        yield made
    finally:
        ray.shutdown()
        made.shutdown()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        shutil.rmtree(folder, ignore_errors=True)
