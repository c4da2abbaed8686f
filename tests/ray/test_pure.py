"""What of the engine needs no cluster."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest
import ray
from ray.exceptions import AuthenticationError
from ray.runtime_env import RuntimeEnv as RayRuntimeEnv

from remora.build.pinning import pinned
from remora.engine.admin_token import token_file
from remora.engine.base import ProcessSpec
from remora.engine.boot import StartError
from remora.engine.ray import cluster as rays
from remora.engine.ray import default_cluster, fleet, near
from remora.engine.ray.actor_options import amounts, environment
from remora.engine.ray.agent import remove_left_sockets
from remora.engine.ray.cluster import _sizes, connect
from remora.engine.ray.crashes import reason_of
from remora.engine.ray.host import _admin_token
from remora.engine.ray.own_ray import OWN_RAY
from remora.engine.ray.process import ProcessActor, ProcessRequest
from remora.engine.ray.relay import is_idle_worker
from remora.engine.ray.replicas import environment_of
from remora.engine.ray.setup import InstanceSetup
from remora.engine.ray.sockets import agent_socket, keep_agent, process_socket
from remora.engine.ray.top import import_ray
from remora.errors import EngineError, InstanceError
from remora.home import Home
from remora.options.resources import MachineOptions, RuntimeEnv
from remora.types import NodeID
from remora.wire.holds import Hold


def test_resources_become_options_of_an_actor() -> None:
    given = {"CPU": 0.5, "GPU": 0.25, "memory": 1e9, "tokenizer": 2.0}
    assert amounts(dict(given)) == {
        "num_cpus": 0.5,
        "num_gpus": 0.25,
        "memory": 1_000_000_000,
        "resources": {"tokenizer": 2.0},
    }
    assert amounts({}) == {"num_cpus": 0.0, "num_gpus": 0.0}


def test_who_states_that_it_has_no_gpus_sees_none() -> None:
    def seen(resources: dict[str, float], env: dict[str, str] | None = None) -> str | None:
        holds = (Hold(NodeID("node"), resources),)
        spec = ProcessSpec("app/D#1", "module:main", "title", holds=holds, env=env or {})
        return environment_of(spec).get("CUDA_VISIBLE_DEVICES")

    assert seen({"CPU": 1.0, "GPU": 0.0}) == ""
    # Ray says which those are, and leaves alone who says nothing.
    assert seen({"GPU": 0.5}) is None
    assert seen({"CPU": 1.0}) is None
    assert seen({"GPU": 0.0}, {"CUDA_VISIBLE_DEVICES": "0"}) == "0"


def test_no_replica_is_taken_for_a_permanent_process() -> None:
    names = [fleet.CONTROLLER, fleet.agent_name("a" * 20), fleet.admin_name("a" * 20)]
    names += [fleet.proxy_name("a" * 20, 1, home=home) for home in (True, False)]
    assert all(map(fleet.is_permanent, names))
    # Applications are named as their authors like.
    for name in names:
        assert not fleet.is_permanent(f"{name}/Model#s-1")
        assert not fleet.is_proxy(f"{name}/Model#s-1")


def test_packages_are_installed_by_ray_as_its_user_says() -> None:
    assert environment(RuntimeEnv(packages=("six",))) == {"pip": {"packages": ["six"]}}
    options = ("--index-url", "https://packages.example/simple")
    for installer, name in (("pip", "pip_install_options"), ("uv", "uv_pip_install_options")):
        env = RuntimeEnv(packages=("six",), installer=installer, install_options=options)
        found = environment(env)
        assert found == {installer: {"packages": ["six"], name: list(options)}}
        # Ray itself takes it so.
        assert RayRuntimeEnv(**found)[installer][name] == list(options)
    assert environment(RuntimeEnv()) == {}


def test_folders_and_files_of_this_node_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="working_dir"):
        environment(RuntimeEnv(working_dir="/app"))
    wheel = tmp_path / "own-1.0-py3-none-any.whl"
    wheel.touch()
    with pytest.raises(EngineError, match=r"own-1\.0.*whl, a file of the node .* every node"):
        environment(pinned(RuntimeEnv(packages=(str(wheel),), installer="uv")))


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


@pytest.mark.parametrize("address", ["", "auto"])
def test_a_cluster_that_wants_a_token_is_told_and_no_other_one_started(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(where: str, **_: object) -> None:
        assert where == "auto"
        raise ConnectionError("Failed to connect") from AuthenticationError("no token")

    monkeypatch.setattr("ray.init", refuse)
    with pytest.raises(InstanceError, match=r"wants a token.*RAY_AUTH_MODE=token"):
        connect(address)


def test_a_new_ray_that_does_not_come_up_is_not_told_to_be_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in OWN_RAY:
        monkeypatch.setenv(name, "")

    def fail(where: str, **_: object) -> None:
        raise TimeoutError("the node timed out\nwith more lines")

    monkeypatch.setattr("ray.init", fail)
    with pytest.raises(
        InstanceError, match=r"^A new Ray .*: the node timed out\. Its logs"
    ) as told:
        connect("local")
    assert "--address" not in str(told.value)


def test_only_the_process_at_the_top_prints_no_stacks(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "RAY_DISABLE_FAILURE_SIGNAL_HANDLER"
    monkeypatch.delenv(name, raising=False)
    import_ray()
    assert name not in os.environ
    monkeypatch.setenv(name, "0")
    import_ray()
    assert os.environ[name] == "0"


def test_a_ray_that_cannot_be_imported_is_told_in_words(tmp_path: Path) -> None:
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "__init__.py").write_text(
        "import os\n"
        "variable = 'RAY_DISABLE_FAILURE_SIGNAL_HANDLER'\n"
        "raise ImportError(f'libx.so: {os.environ[variable]}\\nopen')\n"
    )
    read, write = os.pipe()
    boot = "from remora.engine.ray.top import main; main()"
    run = subprocess.run(
        [sys.executable, "-c", boot, f'{{"ready_fd": {write}}}'],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"},
        pass_fds=(write,),
        capture_output=True,
        check=False,
    )
    os.close(write)
    with os.fdopen(read) as answer:
        told = json.loads(answer.read())["error"]
    assert told.startswith("Ray is installed and cannot be imported: ImportError: libx.so: 1. ")
    assert (run.returncode, run.stderr) == (1, b"")


@pytest.mark.parametrize(
    ("address", "others", "is_new"),
    [("", True, False), ("auto", True, False), ("", False, True), ("local", False, True)],
)
def test_a_cluster_is_told_apart_from_one_of_others(
    address: str, others: bool, is_new: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = list(OWN_RAY)
    for name in names:
        # Set at first, so that it is taken back in the end.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    # What somebody has set stays.
    monkeypatch.setenv(names[0], "theirs")
    found: dict[str, str | None] = {}

    def init(where: str, **_: object) -> None:
        if where == "auto" and not others:
            raise ConnectionError("no cluster")
        found.update({name: os.environ.get(name) for name in names})

    monkeypatch.setattr("ray.init", init)
    assert connect(address) is is_new
    ours = [OWN_RAY[name] for name in names[1:]] if is_new else [None] * (len(names) - 1)
    assert list(found.values()) == ["theirs", *ours]


def test_what_is_imported_ahead_is_there() -> None:
    for module in OWN_RAY["RAY_preload_python_modules"].split(","):
        assert importlib.util.find_spec(module), module
    # Another name would be passed over without a word.
    known = vars(ray._raylet)["Config"].raylet_client_connect_timeout_milliseconds()
    assert known > int(OWN_RAY["RAY_raylet_client_connect_timeout_milliseconds"])


@pytest.mark.parametrize(
    ("says", "told"),
    [
        (b"", "closes the connection"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "says b'HTTP/1.1 400 Bad Req'"),
        (None, "says nothing within 0.05 s"),
    ],
)
def test_what_listens_there_and_is_no_head_is_told_at_once(
    monkeypatch: pytest.MonkeyPatch, says: bytes | None, told: str
) -> None:
    monkeypatch.setattr("remora.engine.ray.greeting._GREET_LIMIT_S", 0.05)

    def answer() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(4096)
            if says is None:
                connection.recv(1)
            else:
                connection.sendall(says)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        other = threading.Thread(target=answer)
        other.start()
        with pytest.raises(InstanceError, match=f"at {address} is not Ray's head: it {told}"):
            connect(address)
        other.join()


def test_another_version_on_a_node_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("remora.engine.ray.cluster.this_node", lambda: "n" * 40)
    request = ProcessRequest(
        process_id="a/d#1", kind="replica", entrypoint="m:f", title="t", namespace="n", version="0"
    )
    actor = ProcessActor(msgspec.msgpack.encode(request))
    with pytest.raises(
        StartError, match=r"this node \(n{12}\) has Remora .*, the instance runs 0:"
    ):
        actor.begin()


def test_a_death_is_told_in_one_line() -> None:
    text = "The actor died.\n\tname: x\nThe actor is dead because it was killed by `ray.kill`."
    assert reason_of(RuntimeError(text)) == "it was killed by `ray.kill`"
    assert reason_of(RuntimeError("no such thing\nat all")) == "no such thing"


def test_why_packages_cannot_be_installed_is_told() -> None:
    text = (
        "Failed to set up runtime environment.\nTraceback (most recent call last):\n  File …\n"
        "RuntimeError: Please install virtualenv to enable pip runtime env."
    )
    assert reason_of(RuntimeError(text)) == (
        "Ray could not set up its environment: RuntimeError: Please install virtualenv to enable "
        "pip runtime env"
    )


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
        http = {"host": "0.0.0.0"}
        setup = InstanceSetup(home="", node_id="", token="", http=http, proxy_location=location)
        assert setup.has_proxies(is_head=True) is on_head
        assert setup.has_proxies(is_head=False) is elsewhere


def test_the_token_of_the_rest_api_is_in_the_folder_of_who_starts_the_instance(
    tmp_path: Path,
) -> None:
    home = Home(tmp_path)
    token_file(home).write_text("chosen\n")
    assert _admin_token(home, "0.0.0.0") == "chosen"
    assert _admin_token(home, "127.0.0.1") == _admin_token(home, None) == ""
    token_file(home).write_text("")
    with pytest.raises(InstanceError, match="admin-token is empty"):
        _admin_token(home, "0.0.0.0")


def test_sockets_of_processes_that_are_gone_are_removed_and_no_others(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.sockets.mkdir(parents=True)
    gone = subprocess.Popen(["true"])
    gone.wait()
    left = process_socket(home, "replica", gone.pid)
    kept = [process_socket(home, "replica", os.getpid()), agent_socket(home)]
    kept.append(home.sockets / "admin.sock")
    for path in (left, left.with_suffix(".beat"), left.with_suffix(".new"), *kept):
        path.touch()
    remove_left_sockets(home.sockets)
    assert sorted(home.sockets.iterdir()) == sorted(kept)


def test_an_idle_worker_of_ray_is_told_by_its_title(tmp_path: Path) -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as other:
        assert not is_idle_worker(other.pid)
    assert not is_idle_worker(other.pid)
    code = "import setproctitle; setproctitle.setproctitle('ray::IDLE'); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as idle:
        assert idle.stdout is not None
        idle.stdout.readline()
        assert is_idle_worker(idle.pid)


def test_a_program_is_in_the_cluster_of_its_instance_unless_it_says_otherwise() -> None:
    assert default_cluster.settings("h:1", {}, shows_token=False) == {"RAY_ADDRESS": "h:1"}
    both = {"RAY_ADDRESS": "h:1", "RAY_AUTH_MODE": "token"}
    assert default_cluster.settings("h:1", {}, shows_token=True) == both
    said = {"RAY_AUTH_MODE": "disabled"}
    assert default_cluster.settings("h:1", said, shows_token=True) == {"RAY_ADDRESS": "h:1"}
    assert not default_cluster.settings("h:1", {"RAY_ADDRESS": "h:2"}, shows_token=True)
    assert not default_cluster.settings("", {}, shows_token=False)


def test_the_variable_of_ray_counts_for_a_program_whose_instance_is_in_a_cluster(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    for before in ("", "h:2"):
        monkeypatch.setenv("RAY_ADDRESS", before)
        assert not near.is_joined()
        made = default_cluster.begin("h:1", shows_token=False)
        assert near.is_joined()
        default_cluster.end(made)
        assert not near.is_joined()


def test_what_names_the_cluster_goes_with_the_instance() -> None:
    made = {"RAY_ADDRESS": "h:1"}
    environment = {**made, "OTHER": "x"}
    default_cluster.end(made, environment)
    assert environment == {"OTHER": "x"}
    changed = {"RAY_ADDRESS": "h:2"}
    default_cluster.end(made, changed)
    assert changed == {"RAY_ADDRESS": "h:2"}


@pytest.mark.parametrize("error", [ConnectionError("cut off"), StopIteration(), None])
async def test_whoever_has_its_socket_back_hears_of_no_error(
    error: Exception | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def nodes() -> list[rays.RayNode]:
        if error is not None:
            raise error
        return []

    monkeypatch.setattr(rays, "nodes", nodes)
    monkeypatch.setattr(rays, "this_node", lambda: "n" * 56)
    monkeypatch.setattr(near, "_find_home", rays.here)
    if error is None:
        with pytest.raises(EngineError, match="does not count this node"):
            rays.here()
    # A thread cannot hand a StopIteration on: who waits for it would wait for ever.
    await asyncio.wait_for(asyncio.to_thread(near._restore, Home(Path("/nowhere"))), 10.0)
    assert "cannot be reached from this node" in caplog.text


def test_an_agent_that_is_stopped_or_has_left_is_told_in_one_line(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.make()
    with pytest.raises(InstanceError, match=r"does not answer at .*agent\.sock"):
        keep_agent(home, 0.1)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(agent_socket(home)))
        # It takes connections, and nobody accepts them.
        sock.listen()
        with pytest.raises(InstanceError, match=r"timed out\. Is its process stopped"):
            keep_agent(home, 0.1)
