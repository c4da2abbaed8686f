"""What of the engine needs no cluster."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from remora.engine.base import ProcessSpec
from remora.engine.ray.cluster import _sizes, connect
from remora.engine.ray.demand import actor_options, amounts
from remora.engine.ray.engine import reason_of
from remora.engine.ray.setup import InstanceSetup
from remora.errors import EngineError, InstanceError
from remora.resource_config import MachineOptions, RuntimeEnv


def test_resources_become_options_of_an_actor() -> None:
    given = {"CPU": 0.5, "GPU": 0.25, "memory": 1e9, "tokenizer": 2.0}
    assert amounts(dict(given)) == {
        "num_cpus": 0.5,
        "num_gpus": 0.25,
        "memory": 1_000_000_000,
        "resources": {"tokenizer": 2.0},
    }
    assert amounts({}) == {"num_cpus": 0.0, "num_gpus": 0.0}


def test_packages_are_installed_by_ray_and_folders_are_refused() -> None:
    spec = ProcessSpec("a/d#1", "m:f", "t", runtime_env=RuntimeEnv(packages=("six",)))
    assert actor_options(spec)["runtime_env"] == {"pip": ["six"]}
    folder = ProcessSpec("a/d#1", "m:f", "t", runtime_env=RuntimeEnv(working_dir="/app"))
    with pytest.raises(EngineError, match="working_dir"):
        actor_options(folder)


def test_what_a_machine_has_becomes_options_of_ray() -> None:
    machine = MachineOptions(resources={"CPU": 2.0, "GPU": 1.0, "t": 3.0}, labels={"a": "b"})
    assert _sizes(machine) == {
        "num_cpus": 2.0,
        "num_gpus": 1,
        "resources": {"t": 3.0},
        "labels": {"a": "b"},
    }


def test_an_address_that_cannot_be_is_told_at_once() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        with pytest.raises(InstanceError, match=f"No Ray cluster answers at {address}"):
            connect(address)
    with pytest.raises(InstanceError, match="Ray Client"):
        connect("ray://head:10001")


def test_a_death_is_told_in_one_line() -> None:
    text = "The actor died.\n\tname: x\nThe actor is dead because it was killed by `ray.kill`."
    assert reason_of(RuntimeError(text)) == "it was killed by `ray.kill`"
    assert reason_of(RuntimeError("no such thing\nat all")) == "no such thing"


def test_each_node_has_a_folder_of_its_own() -> None:
    setup = InstanceSetup(home="/home/me/.remora", node_id="n1", token="t", http={})
    assert setup.home_on("n1", "/tmp/ray/s").root == Path("/home/me/.remora")
    assert setup.home_on("n" * 20, "/tmp/ray/s").root == Path("/tmp/ray/s/remora-nnnnnnnnnnnn")


def test_proxies_run_where_they_are_wanted() -> None:
    for location, on_head, elsewhere in (
        ("EveryNode", True, True),
        ("HeadOnly", True, False),
        ("Disabled", False, False),
    ):
        setup = InstanceSetup(home="", node_id="", token="", http={}, proxy_location=location)
        assert setup.has_proxies(is_head=True) is on_head
        assert setup.has_proxies(is_head=False) is elsewhere
