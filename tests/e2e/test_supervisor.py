"""The embedded engine with real processes: starts, ends, crashes, and what is left after them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import psutil
import pytest

from remora.config import HTTPOptions
from remora.engine import linux
from remora.engine.base import EngineEvent, NodeJoined, ProcessExited, ProcessSpec, ProcessStarted
from remora.engine.claim import find_owner
from remora.engine.launch import EntryPoints, Launch, LaunchSetup, end, launch
from remora.engine.local.client import LocalEngine
from remora.errors import InstanceError
from remora.home import Home

pytestmark = [pytest.mark.slow, pytest.mark.e2e, pytest.mark.local_only("about the supervisor")]

#: Everything of an instance is to be gone this long after its owner or its supervisor.
GONE_S = 2.0
ANSWERING = EntryPoints("entrypoints:control", "entrypoints:control")
IDLE = EntryPoints("entrypoints:idle", "entrypoints:idle")


async def until(condition: Callable[[], object], what: str, timeout_s: float = 8.0) -> None:
    """Wait for a condition that no event tells of."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def closing(engine: LocalEngine) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await engine.close()


class Instance:
    """An instance under test, and the controller's view of it."""

    def __init__(self, home: Home, launched: Launch) -> None:
        self.home = home
        self.launched = launched
        self.url = launched.wait_ready().http_url
        owner = find_owner(home)
        assert owner is not None
        assert owner.http_url == self.url
        self.token = owner.token
        self.engine = LocalEngine(home)
        self.events: AsyncIterator[EngineEvent] = self.engine.events()

    async def next(self, timeout_s: float = 8.0) -> EngineEvent:
        return await asyncio.wait_for(anext(self.events), timeout_s)

    async def start(self, entrypoint: str, name: str = "app/d#1", **more: object) -> ProcessStarted:
        await self.begin(entrypoint, name, **more)
        event = await self.next()
        assert isinstance(event, ProcessStarted), event
        assert event.process_id == name
        return event

    async def begin(self, entrypoint: str, name: str = "app/d#1", **more: object) -> None:
        title = f"remora: replica {name}"
        spec = ProcessSpec(name, f"entrypoints:{entrypoint}", title, **more)  # type: ignore[arg-type]
        await self.engine.start_process(spec)

    async def exited(self) -> ProcessExited:
        event = await self.next()
        assert isinstance(event, ProcessExited), event
        return event

    async def pid(self, name: str) -> int:
        return {p.name: p.pid for p in await self.engine.system_processes()}[name]

    async def restarted(self, name: str, old_pid: int) -> int:
        deadline = time.monotonic() + 8.0
        while (pid := await self.pid(name)) in (0, old_pid):
            assert time.monotonic() < deadline, f"{name} was not restarted"
        return pid

    async def listens(self, *names: str) -> None:
        """Wait until these processes, which run `idle`, have set their handlers."""
        for name in names:
            file = self.home.root / f"waits-{await self.pid(name)}"
            await until(file.exists, f"{name} has set its handler")

    def members(self) -> list[int]:
        return linux.members(self.token, ())

    async def all_gone(self) -> None:
        await until(lambda: not self.members(), "all processes gone", GONE_S)


@contextlib.asynccontextmanager
async def running(
    folder: Path,
    entry_points: EntryPoints = IDLE,
    *,
    port: int | None = 0,
    bound: bool = True,
    grace_s: float = 5.0,
) -> AsyncIterator[Instance]:
    home = Home.locate(folder)
    http = HTTPOptions(host=None) if port is None else HTTPOptions(port=port)
    launched = launch(home, LaunchSetup(http), bound, entry_points=entry_points, grace_s=grace_s)
    tokens = []
    try:
        instance = Instance(home, launched)
        tokens.append(instance.token)
        async with closing(instance.engine):
            await instance.engine.connect()
            assert isinstance(await instance.next(), NodeJoined)
            yield instance
    finally:
        launched.end(2.0)
        left = [pid for token in tokens for pid in linux.members(token, ())]
        # A failed test must not leave what it was looking for behind.
        for token in tokens:
            linux.kill_members(token, ())
    assert left == []


@pytest.fixture(autouse=True)
def _entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)


@pytest.fixture
async def instance(remora_home: Path) -> AsyncIterator[Instance]:
    async with running(remora_home) as made:
        yield made


def ask(address: str) -> list[str]:
    """Connect and read the answer of `entrypoints.answer`: pid, random number, colour."""
    if address.startswith("unix:"):
        connection = socket.socket(socket.AF_UNIX)
        target: object = address.removeprefix("unix:")
    else:
        connection = socket.socket()
        host, _, port = address.removeprefix("http://").rpartition(":")
        target = (host, int(port))
    with connection:
        connection.settimeout(8.0)
        connection.connect(target)  # type: ignore[arg-type]
        return connection.recv(1000).decode().split(" ")


# ------------------------------------------------------------------------------------------ starts


async def test_every_process_is_a_child_of_the_supervisor_and_leads_a_session(
    instance: Instance,
) -> None:
    started = await instance.start("idle")
    supervisor = instance.launched.pid
    for pid in (started.pid, await instance.pid("controller"), await instance.pid("proxy-1")):
        assert psutil.Process(pid).ppid() == supervisor
        assert os.getsid(pid) == os.getpgid(pid) == pid
    assert os.getsid(supervisor) == supervisor != os.getsid(0)


async def test_processes_say_in_ps_what_they_are(instance: Instance) -> None:
    started = await instance.start("idle")
    assert " ".join(psutil.Process(started.pid).cmdline()) == "remora: replica app/d#1"
    for name, title in (("supervisor", "supervisor"), ("template", "template")):
        pid = await instance.pid(name)
        assert " ".join(psutil.Process(pid).cmdline()) == f"remora: {title}"


async def test_a_started_process_takes_connections_at_its_address(instance: Instance) -> None:
    started = await instance.start("answer", env={"COLOUR": "green"})
    pid, _, colour = ask(started.address)
    assert (int(pid), colour) == (started.pid, "green")


async def test_processes_do_not_share_random_numbers(instance: Instance) -> None:
    one = await instance.start("answer", "app/d#1")
    two = await instance.start("answer", "app/d#2")
    assert ask(one.address)[1] != ask(two.address)[1]


async def test_a_replica_holds_no_socket_but_its_own(instance: Instance) -> None:
    started = await instance.start("idle")
    connections = psutil.Process(started.pid).net_connections("all")
    assert [f"unix:{c.laddr}" for c in connections] == [started.address]


async def test_fifty_starts_at_once_all_come_up_once(instance: Instance) -> None:
    names = {f"app/d#{number}" for number in range(50)}
    for name in names:
        await instance.begin("idle", name)
    events = [await instance.next() for _ in names]
    assert all(isinstance(event, ProcessStarted) for event in events)
    assert {e.process_id for e in events if isinstance(e, ProcessStarted)} == names


@pytest.mark.parametrize(
    ("entrypoint", "reason"),
    [
        ("missing_module:main", "ModuleNotFoundError: No module named 'missing_module'"),
        ("entrypoints:missing", "has no attribute 'missing'"),
        ("entrypoints", "is not of the form package.module:function"),
    ],
)
async def test_what_cannot_start_says_why(instance: Instance, entrypoint: str, reason: str) -> None:
    await instance.engine.start_process(ProcessSpec("app/d#1", entrypoint, "remora: replica"))
    event = await instance.exited()
    assert event.reason.startswith("could not start: ")
    assert reason in event.reason
    assert not event.expected


# -------------------------------------------------------------------------------------------- ends


@pytest.mark.parametrize(
    ("how", "reason", "expected"),
    [
        (0, "exit status 0", True),
        (3, "exit status 3", False),
        (-signal.SIGKILL, "killed by SIGKILL", False),
        (-signal.SIGSEGV, "killed by SIGSEGV", False),
    ],
)
async def test_an_end_is_reported_with_its_reason(
    instance: Instance, how: int, reason: str, expected: bool
) -> None:
    await instance.start("crash", args={"how": how})
    event = await instance.exited()
    assert event.reason.startswith(reason)
    assert event.expected is expected


async def test_an_exception_ends_in_status_1_with_the_traceback_on_stderr(
    remora_home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async with running(remora_home) as instance:
        await instance.start("raises")
        assert (await instance.exited()).reason == "exit status 1"
    assert "RuntimeError: app/d#1 fails on purpose" in capfd.readouterr().err


async def test_stopping_is_expected_and_lets_the_process_end_by_itself(instance: Instance) -> None:
    started = await instance.start("answer")
    await until((instance.home.root / f"waits-{started.pid}").exists, "its handler is set")
    await instance.engine.stop_process("app/d#1", 8.0)
    event = await instance.exited()
    assert (event.reason, event.expected) == ("exit status 0", True)


async def test_a_process_that_ignores_sigterm_is_killed_at_its_deadline(instance: Instance) -> None:
    await instance.start("stubborn")
    await until((instance.home.root / "stubborn").exists, "SIGTERM is ignored")
    await instance.engine.stop_process("app/d#1", 0.1)
    event = await instance.exited()
    assert (event.reason, event.expected) == ("killed by SIGKILL", True)


async def test_what_a_replica_spawned_goes_with_it(instance: Instance) -> None:
    await instance.start("parent")
    children = await child_pids(instance.home)
    await instance.engine.kill_process("app/d#1")
    await instance.exited()
    await until(lambda: not any(map(alive, children)), "children are gone", GONE_S)


async def child_pids(home: Home) -> list[int]:
    file = home.root / "children.txt"
    await until(file.exists, "the replica has spawned its children")
    return [int(pid) for pid in file.read_text(encoding="utf-8").split()]


def alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


# -------------------------------------------------------------------- crashes of our own processes


@pytest.mark.parametrize("name", ["controller", "proxy-1"])
async def test_a_crashed_system_process_is_replaced_and_no_connection_refused(
    remora_home: Path, name: str
) -> None:
    async with running(remora_home, ANSWERING) as instance:
        controller = f"unix:{instance.home.controller_socket}"
        address = controller if name == "controller" else instance.url
        before = int(ask(address)[0])
        os.kill(before, signal.SIGKILL)
        await until(lambda: not alive(before), "it is dead")
        assert int(ask(address)[0]) == await instance.restarted(name, before)


async def test_a_new_controller_is_told_of_the_replicas_that_live(instance: Instance) -> None:
    one = await instance.start("idle", "app/d#1")
    await instance.start("crash", "app/d#2", args={"how": 0})
    await instance.exited()
    successor = LocalEngine(instance.home)
    await successor.connect()
    events = successor.events()
    assert isinstance(await anext(events), NodeJoined)
    assert await anext(events) == one
    # Live from now on, and nothing in between.
    await successor.kill_process("app/d#1")
    assert isinstance(await anext(events), ProcessExited)
    await successor.close()


async def test_a_dead_template_is_replaced_and_takes_no_replica_with_it(instance: Instance) -> None:
    one = await instance.start("answer", "app/d#1")
    template = await instance.pid("template")
    os.kill(template, signal.SIGKILL)
    two = await instance.start("answer", "app/d#2")
    assert int(ask(one.address)[0]) == one.pid
    assert int(ask(two.address)[0]) == two.pid
    assert await instance.pid("template") != template


async def test_starts_survive_the_death_of_the_template_each_exactly_once(
    instance: Instance,
) -> None:
    template = await instance.pid("template")
    names = {f"app/d#{number}" for number in range(30)}
    for name in names:
        await instance.begin("idle", name)
    await instance.next()
    os.kill(template, signal.SIGKILL)
    events = [await instance.next() for _ in range(len(names) - 1)]
    assert all(isinstance(event, ProcessStarted) for event in events), events
    titles = [" ".join(psutil.Process(pid).cmdline()) for pid in instance.members()]
    replicas = [title for title in titles if "replica" in title]
    assert sorted(replicas) == sorted(f"remora: replica {name}" for name in names)


async def test_when_the_supervisor_is_killed_everything_is_gone_and_the_folder_is_usable(
    remora_home: Path,
) -> None:
    async with running(remora_home) as instance:
        await instance.start("parent")
        children = await child_pids(instance.home)
        os.kill(instance.launched.pid, signal.SIGKILL)
        await instance.all_gone()
        assert not any(map(alive, children))
        with pytest.raises(StopAsyncIteration):
            await anext(instance.events)
        port = int(instance.url.rpartition(":")[2])
    async with running(remora_home, ANSWERING, port=port) as instance:
        assert ask(instance.url)


async def test_a_start_removes_what_a_killed_instance_left(
    remora_home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async with running(remora_home) as instance:
        replica = await instance.start("parent")
        children = await child_pids(instance.home)
        # Without the template nobody is left to clean up at once.
        template = await instance.pid("template")
        os.kill(template, signal.SIGSTOP)
        os.kill(instance.launched.pid, signal.SIGKILL)
        assert instance.launched.wait_gone(GONE_S)
        await until(lambda: not alive(replica.pid), "the kernel has ended the replica", GONE_S)
        assert any(map(alive, children))
        async with running(remora_home):
            assert not any(map(alive, [*children, template]))
    assert "removed processes of an instance that was killed" in capfd.readouterr().err


# ------------------------------------------------------------------------------------------ owners

DRIVER = """
import asyncio, os, sys, time
from remora.config import HTTPOptions
from remora.engine.base import ProcessSpec
from remora.engine.local.client import LocalEngine
from remora.engine.launch import EntryPoints, LaunchSetup, launch
from remora.home import Home

async def main():
    home = Home.locate()
    idle = EntryPoints("entrypoints:idle", "entrypoints:idle")
    launched = launch(
        home, LaunchSetup(HTTPOptions(port=0)), sys.argv[1] == "bound", entry_points=idle
    )
    launched.wait_ready()
    engine = LocalEngine(home)
    await engine.connect()
    await engine.start_process(ProcessSpec("app/d#1", "entrypoints:parent", "remora: replica"))
    await engine.start_process(ProcessSpec("app/d#2", "entrypoints:stubborn", "remora: replica"))
    # Its two replicas have done what they do, controller and proxy have set their handlers.
    expected = ["children.txt", "stubborn", "waits-*", "waits-*"]
    while any(len(list(home.root.glob(name))) < expected.count(name) for name in expected):
        await asyncio.sleep(0.005)
    if os.fork() == 0:
        # A child of the owner that outlives it, and keeps what it inherited.
        os.close(1)
        time.sleep(20)
        os._exit(0)
    print("up", flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


@contextlib.contextmanager
def driver(kind: str) -> Iterator[subprocess.Popen[str]]:
    """Run a program that starts an instance; yields when the instance is up."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", DRIVER, kind],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


async def test_a_bound_instance_is_gone_two_seconds_after_its_owner_was_killed(
    remora_home: Path,
) -> None:
    home = Home.locate(remora_home)
    with driver("bound") as owner_process:
        owner = find_owner(home)
        assert owner is not None
        assert owner.bound
        children = await child_pids(home)
        owner_process.kill()
        owner_process.wait()
        await until(lambda: not linux.members(owner.token, ()), "everything is gone", GONE_S)
        assert not any(map(alive, children))
    await until(lambda: find_owner(home) is None, "the folder is free", GONE_S)
    assert list(home.sockets.iterdir()) == []
    # The end was orderly: who listens to SIGTERM got it.
    ends = (home.root / "ends.txt").read_text(encoding="utf-8").split()
    assert sorted(ends) == ["controller", "proxy-1"]


async def test_an_instance_that_is_not_bound_outlives_its_starter_and_logs_to_a_file(
    remora_home: Path,
) -> None:
    home = Home.locate(remora_home)
    with driver("free"):
        owner = find_owner(home)
        assert owner is not None
    engine = LocalEngine(home)
    await engine.connect()
    spec = ProcessSpec("app/d#3", "entrypoints:prints", "remora: replica")
    await engine.start_process(spec)
    log = home.logs / "instance.log"
    await until(lambda: "printed by app/d#3" in log.read_text(encoding="utf-8"), "the print")
    await engine.close()
    end(owner, 0.3)
    assert linux.members(owner.token, ()) == []
    assert find_owner(home) is None


async def test_sigterm_ends_proxies_then_replicas_then_the_controller(instance: Instance) -> None:
    started = await instance.start("idle")
    await instance.listens("controller", "proxy-1")
    await until((instance.home.root / f"waits-{started.pid}").exists, "the replica listens")
    os.kill(instance.launched.pid, signal.SIGTERM)
    assert instance.launched.wait_gone(GONE_S)
    ends = (instance.home.root / "ends.txt").read_text(encoding="utf-8").split()
    assert ends == ["proxy-1", "app/d#1", "controller"]
    assert list(instance.home.sockets.iterdir()) == []
    assert find_owner(instance.home) is None


async def test_shutdown_ends_the_instance_and_its_events(instance: Instance) -> None:
    await instance.engine.shutdown()
    with pytest.raises(StopAsyncIteration):
        await instance.next()
    assert instance.launched.wait_gone(GONE_S)


async def test_a_second_signal_ends_the_patience(remora_home: Path) -> None:
    async with running(remora_home, grace_s=60.0) as instance:
        await instance.start("stubborn")
        await until((instance.home.root / "stubborn").exists, "SIGTERM is ignored")
        await instance.listens("proxy-1")
        os.kill(instance.launched.pid, signal.SIGTERM)
        ends = instance.home.root / "ends.txt"
        await until(ends.exists, "the first signal was taken")
        os.kill(instance.launched.pid, signal.SIGTERM)
        assert instance.launched.wait_gone(GONE_S)


# ------------------------------------------------------------------------- what cannot be started


def refused(folder: Path, http: HTTPOptions) -> str:
    launched = launch(Home.locate(folder), LaunchSetup(http), True, entry_points=IDLE)
    try:
        with pytest.raises(InstanceError) as caught:
            launched.wait_ready()
        assert launched.wait_gone(GONE_S)
    finally:
        launched.end(1.0)
    return str(caught.value)


async def test_a_second_instance_in_a_folder_is_refused_and_disturbs_nothing(
    remora_home: Path,
) -> None:
    async with running(remora_home, ANSWERING) as instance:
        message = refused(remora_home, HTTPOptions(port=0))
        for part in (str(remora_home), f"pid {instance.launched.pid}", "REMORA_HOME", "shutdown"):
            assert part in message
        assert ask(instance.url)


async def test_a_taken_port_is_named_with_who_holds_it(remora_home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        message = refused(remora_home, HTTPOptions(port=port))
    for part in (f"127.0.0.1:{port}", "in use", f"pid {os.getpid()}", "--port"):
        assert part in message


async def test_an_address_of_another_machine_is_refused(remora_home: Path) -> None:
    message = refused(remora_home, HTTPOptions(host="192.0.2.1", port=0))
    assert "192.0.2.1:0" in message
    assert "--host" in message


async def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    message = refused(tmp_path / "file" / "home", HTTPOptions(port=0))
    assert str(tmp_path / "file" / "home") in message
    assert "is a file" in message


async def test_without_a_host_there_is_no_front_door(remora_home: Path) -> None:
    async with running(remora_home, port=None) as instance:
        assert instance.url == ""
        names = [process.name for process in await instance.engine.system_processes()]
        assert names == ["supervisor", "template", "controller"]


@pytest.mark.parametrize(
    "junk",
    [
        b"\x00\xff\x80 junk\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"[]\n",
        b'{"op":"start"}\n',
        b'{"op":"start","id":"x","entrypoint":1,"title":2,"env":[3]}\n',
        b'{"op":"stop","id":["x"],"timeout_s":"soon"}\n',
        b'{"op":"nonsense"}\n',
        b"[" * 100_000 + b"\n",
    ],
)
async def test_junk_on_the_supervisors_socket_closes_that_connection_alone(
    instance: Instance, junk: bytes
) -> None:
    with socket.socket(socket.AF_UNIX) as visitor:
        visitor.settimeout(8.0)
        visitor.connect(str(instance.home.supervisor_socket))
        visitor.sendall(junk)
        with contextlib.suppress(ConnectionResetError):
            assert visitor.recv(100) == b""
    await instance.start("idle")


async def test_half_a_command_and_an_end_is_no_command(instance: Instance) -> None:
    with socket.socket(socket.AF_UNIX) as visitor:
        visitor.connect(str(instance.home.supervisor_socket))
        visitor.sendall(b'{"op":"shutdown"}')
    await instance.start("idle")
