"""Wrong, hostile and unlucky input: a clear answer to it, and nothing else is disturbed.

While most of these tests run, another application of the same instance is asked all the time, and
must not miss one answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import socket
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
from tests import engines
from tests.e2e.apps import BadManners, BadMannersInThread, Echo, Endless, Upload
from tests.e2e.conftest import StartCommand, StartInstance
from tests.e2e.instances import Instance
from tests.e2e.load import Load, ask, client, get, load
from tests.e2e.processes import kill, title, usage
from tests.e2e.waiting import until_async, until_true

from remora.errors import InstanceError
from remora.wire.codec import pack
from remora.wire.framing import encode
from remora.wire.messages import WIRE_VERSION, FrameKind, Hello

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(60)]

#: What every command below imports.
MODULE = """
import threading, time
import remora as serve

@serve.deployment
class Hello:
    async def __call__(self, request):
        return "hello"

class Plain:
    pass

@serve.deployment(max_constructor_retry_count=1)
class Raises:
    def __init__(self):
        raise OSError("weights.bin is not there")

@serve.deployment
class Hangs:
    def __init__(self):
        print("begins to hang", flush=True)
        time.sleep(1000)

@serve.deployment
class Locked:
    def __init__(self, lock):
        pass

app = Hello.bind()
raising = Raises.bind()
hanging = Hangs.bind()
locked = Locked.bind({"guard": threading.Lock()})
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "hello.py").write_text(MODULE)
    (tmp_path / "typo.py").write_text(
        "import remora as serve\n@serve.deployment(num_replica=2)\nclass A: ...\n"
    )
    return tmp_path


@pytest.fixture
async def bystander(shared: Instance) -> AsyncIterator[Load]:
    """An application that is asked all the time, and must always answer."""
    if "bystander" not in (await shared.status()).applications:
        await shared.run(Echo.bind(), "bystander")
    async with load(f"{shared.url}/bystander", rate=50) as traffic:
        await traffic.more(1)
        yield traffic
    assert traffic.failures == []


# ------------------------------------------------------------------------- on the command line


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("helo:app", ["no module 'helo'", "'hello'"]),
        ("hello:ap", ["has no 'ap'", "'app'"]),
        ("hello:Hello", ["not bound", "Hello.bind()"]),
        ("hello:Plain", ["class Plain", ".bind()"]),
        (
            "hello:raising",
            ["OSError: weights.bin is not there", "hello.py", "could not be deployed"],
        ),
        ("hello:locked", ["cannot be pickled", "lock", "constructor"]),
        ("typo:A", ["num_replica", "'num_replicas'", "typo.py"]),
    ],
)
def test_a_wrong_target_is_refused_with_a_way_out(
    remora: StartCommand, shared: Instance, folder: Path, target: str, says: list[str]
) -> None:
    command = remora(
        "run", target, "-n", "wrong", "--route-prefix", "/wrong", home=shared.home.root
    )
    assert command.wait() == 1, command.output
    missing = [text for text in says if text not in command.output]
    assert not missing, command.output
    assert "src/remora" not in command.output, "our own frames say nothing to a user"


def test_a_port_that_is_taken_is_named_with_its_owner(remora: StartCommand, folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = remora("run", "hello:app", "--port", str(port))
        assert command.wait() == 1
    assert f"127.0.0.1:{port}" in command.output
    assert "in use" in command.output
    assert f"pid {os.getpid()}" in command.output
    assert "--port" in command.output


def test_a_constructor_that_hangs_shows_in_the_status_and_can_be_interrupted(
    remora: StartCommand, folder: Path
) -> None:
    command = remora("run", "hello:hanging", "--port", "0")
    command.wait_output("begins to hang")
    status = remora("status")
    assert status.wait() == 0
    assert "DEPLOYING" in status.output
    assert "1 starting" in status.output
    began = time.monotonic()
    os.killpg(command.process.pid, signal.SIGINT)
    assert command.wait() == 130, command.output
    assert time.monotonic() - began < engines.patient(3.0)


@pytest.mark.parametrize("place", ["/proc/remora", "/dev/null/remora"])
def test_a_state_folder_that_cannot_be_written_is_named(
    remora: StartCommand, folder: Path, place: str
) -> None:
    command = remora("run", "hello:app", "--port", "0", home=Path(place))
    assert command.wait() == 1
    assert place in command.output
    assert "REMORA_HOME" in command.output
    assert "Traceback" not in command.output


def test_a_folder_holds_one_instance(remora: StartCommand, start_instance: StartInstance) -> None:
    instance = start_instance()
    with pytest.raises(InstanceError, match=f"pid {instance.pid}.*remora shutdown -y"):
        start_instance(instance.home.root)
    command = remora("start", "--http-port", "0", home=instance.home.root)
    assert command.wait() == 0
    assert "already" in command.output
    assert str(instance.pid) in command.output


async def test_two_runs_side_by_side_do_not_know_each_other(
    remora: StartCommand, folder: Path, home: Path
) -> None:
    commands = [
        remora("run", "hello:app", "--port", "0", home=home / name) for name in ("one", "two")
    ]
    urls = [command.wait_url() for command in commands]
    assert len(set(urls)) == 2
    assert [(await get(url)).body for url in urls] == [b"hello"] * 2
    os.killpg(commands[0].process.pid, signal.SIGINT)
    assert commands[0].wait() == 0, commands[0].output
    assert (await get(urls[1])).body == b"hello"
    os.killpg(commands[1].process.pid, signal.SIGINT)
    assert commands[1].wait() == 0, commands[1].output


@pytest.mark.parametrize("damage", ["short", "garbage"])
@pytest.mark.local_only("damages its database file")
async def test_a_damaged_database_is_put_aside(start_instance: StartInstance, damage: str) -> None:
    instance = start_instance()
    await instance.run(Echo.bind(), "echo")
    kill(instance.pid)
    await until_true(lambda: not instance.members(), "the instance is gone")
    database = instance.home.database
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("pragma wal_checkpoint(truncate)")
    whole = database.read_bytes()
    damaged = whole[: len(whole) // 2] if damage == "short" else b"garbage" * 1000
    database.write_bytes(damaged)
    again = start_instance(instance.home.root)
    url = await again.run(Echo.bind("again"), "echo")
    assert (await get(url)).json["version"] == "again"
    others = [path for path in instance.home.root.glob("state.db*") if path != database]
    kept = [path for path in others if path.read_bytes() == damaged]
    assert kept, others
    await again.logged(kept[0].name)
    with contextlib.closing(sqlite3.connect(database)) as connection:
        assert connection.execute("pragma integrity_check").fetchone() == ("ok",)


@pytest.mark.local_only("Ray does not start where no file can grow")
async def test_a_full_disk_stops_the_logs_and_not_the_answers(
    remora: StartCommand, folder: Path
) -> None:
    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    command = remora("run", "hello:app", "--port", "0", preexec_fn=small_files)
    url = command.wait_url()
    log = command.home.logs / "access-proxy-1.log"
    async with load(url, rate=500) as traffic:
        # Some hundred bytes for each in the log: more than it may hold.
        await traffic.more(1200)
    assert traffic.failures == []
    assert log.stat().st_size <= 100_000
    assert "access log" in command.output
    # A deploy either works or says why not; what runs goes on.
    for _ in range(3):
        deploy = remora("run", "hello:app", "--non-blocking", preexec_fn=small_files)
        assert deploy.wait() in (0, 1)
        assert "Traceback" not in deploy.output, deploy.output
    assert (await get(url)).body == b"hello"


# ------------------------------------------------------------------------------------ over HTTP


async def talk(url: str, data: bytes, timeout_s: float = 5.0) -> bytes:
    """Send bytes and return all that comes back until the other side closes."""
    reader, writer = await connect(url)
    try:
        writer.write(data)
        async with asyncio.timeout(timeout_s):
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def connect(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    parts = urlsplit(url)
    return await asyncio.open_connection(parts.hostname, parts.port)


@pytest.mark.parametrize(
    "data",
    [
        b"NONSENSE\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET  HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost x\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999999999999999\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /bystander HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"\x00" * 1000,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + os.urandom(500),
    ],
    ids=repr,
)
async def test_malformed_http_is_refused(shared: Instance, bystander: Load, data: bytes) -> None:
    answer = await talk(shared.url, data)
    assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 501 ", b"HTTP/1.1 505 ")), answer
    assert b"connection: close" in answer.lower()


async def test_a_head_that_is_too_large_is_refused(shared: Instance, bystander: Load) -> None:
    large = b"GET / HTTP/1.1\r\nhost: x\r\nx-large: " + b"a" * 70_000 + b"\r\n\r\n"
    many = b"GET / HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 20_000 + b"\r\n"
    endless = b"GET /" + b"a" * 200_000
    for data in (large, many, endless):
        answer = await talk(shared.url, data)
        assert answer.startswith(b"HTTP/1.1 431 "), answer
        assert b"65536" in answer


async def test_a_body_that_is_too_large_is_refused(start_instance: StartInstance) -> None:
    instance = start_instance(max_body_bytes=100_000)
    url = await instance.run(Upload.bind(), "upload")

    async def parts(number: int) -> AsyncIterator[bytes]:
        for _ in range(number):
            yield b"x" * 10_000

    async with client(force_close=True) as session:
        fits = [
            await ask(session, url, method="POST", data=b"x" * 100_000),
            await ask(session, url, method="POST", data=parts(10)),
        ]
        assert [(a.status, a.body) for a in fits] == [(200, b"100000")] * 2
        answer = await ask(session, url, method="POST", data=parts(11))
        assert answer.status == 413, answer
        assert b"100000" in answer.body
    # Refused by its length alone: none of the body was sent.
    head = b"POST /upload HTTP/1.1\r\nhost: x\r\ncontent-length: 100001\r\n\r\n"
    assert (await talk(url, head)).startswith(b"HTTP/1.1 413 ")


async def test_a_large_upload_passes_through_little_memory(
    shared: Instance, bystander: Load
) -> None:
    num_parts, part = 300, b"x" * 1_000_000
    async with shared.running(Upload.bind(), "upload") as url:
        pids = {(await shared.status()).proxies[0].pid, *await shared.pids("upload")}
        before = {pid: rss(pid) for pid in pids}
        peaks = dict(before)

        async def parts() -> AsyncIterator[bytes]:
            for _ in range(num_parts):
                yield part
                for pid in pids:
                    peaks[pid] = max(peaks[pid], rss(pid))

        async with client() as session:
            answer = await ask(session, url, method="POST", data=parts())
        assert answer.status == 200, answer
        assert answer.json == num_parts * len(part)
        grown = {title(pid): peaks[pid] - before[pid] for pid in pids}
        assert max(grown.values()) < 20_000_000, grown


async def test_clients_that_do_not_read_stop_what_is_sent_to_them(
    shared: Instance, bystander: Load
) -> None:
    async with shared.running(Endless.bind(), "endless") as url:
        handle = shared.handle("Endless", "endless")
        pids = {(await shared.status()).proxies[0].pid, *await shared.pids("endless")}
        before = {pid: rss(pid) for pid in pids}
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(20):
                _, writer = await connect(url)
                stack.callback(writer.close)
                writer.write(b"GET /endless HTTP/1.1\r\nhost: x\r\n\r\n")
            last = -1

            async def stands_still() -> bool:
                nonlocal last
                previous, last = last, await handle.count.remote()
                await bystander.more(5)
                return bool(previous == last > 20)

            await until_async(stands_still, "the generators stand still")
            grown = {title(pid): rss(pid) - before[pid] for pid in pids}
            # 20 clients times the windows on the way: of the stream, of two sockets.
            assert max(grown.values()) < 40_000_000, grown


def rss(pid: int) -> int:
    found = usage(pid)
    assert found is not None
    return found.rss_bytes


async def test_thousands_of_idle_connections_disturb_nobody(
    shared: Instance, bystander: Load, many_descriptors: None
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(20):
            opened = await asyncio.gather(*(connect(shared.url) for _ in range(100)))
            for _, writer in opened:
                stack.callback(writer.close)
        async with load(f"{shared.url}/bystander", rate=200) as traffic:
            await traffic.more(300)
        assert traffic.failures == []
        assert sorted(a.ended - a.began for a in traffic.answers)[270] < 0.1


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


# ---------------------------------------------------------------------- on the sockets inside

_HELLO = encode(FrameKind.HELLO, 0, pack(Hello(WIRE_VERSION)))
JUNK = [
    os.urandom(4096),
    b"\xff" * 100,
    b"\x00" * 100,
    b"GET / HTTP/1.1\r\n\r\n",
    b"A" * 1_000_000,
    b"{}\n",
    b"[]\nnull\n17\n",
    b'{"op": "no such thing"}\n',
    b'{"op": "start"}\n',
    b'{"op": "stop", "id": {}, "timeout_s": "x"}\n',
    b'{"op": "' + b"x" * 1_000_000,
    _HELLO[:-3],
    _HELLO + b"\xff" * 100,
    _HELLO + encode(FrameKind.REQUEST, 1, b"\xc1\xc1"),
    _HELLO + encode(FrameKind.REQUEST, 1, os.urandom(50), os.urandom(50)),
    _HELLO + _HELLO + _HELLO,
    _HELLO + encode(FrameKind.CREDIT, 77, b"\xff") + encode(FrameKind.BODY, 78, b"", b"abc"),
    encode(FrameKind.REQUEST, 1, b"", b"before any greeting"),
]


async def test_junk_on_the_sockets_inside_disturbs_nobody(
    shared: Instance, bystander: Load
) -> None:
    sockets = sorted(shared.home.sockets.glob("*.sock"))
    names = {path.name for path in sockets}
    assert {"controller.sock", *([] if engines.is_ray() else ["supervisor.sock"])} < names
    async with contextlib.AsyncExitStack() as stack:
        before = await shared.status()
        for path in sockets:
            for junk in JUNK:
                reader, writer = await asyncio.open_unix_connection(str(path))
                stack.callback(writer.close)
                # Whoever sends junk is cut off, or left waiting: both are fine.
                with contextlib.suppress(ConnectionError, TimeoutError):
                    writer.write(junk)
                    await writer.drain()
                    async with asyncio.timeout(0.02):
                        await reader.read(100_000)
        url = await shared.run(Echo.bind("after"), "after")
        assert (await get(url)).json["version"] == "after"
    after = await shared.status()
    assert (after.controller_pid, after.supervisor_pid) == (
        before.controller_pid,
        before.supervisor_pid,
    )
    assert [p.pid for p in after.proxies] == [p.pid for p in before.proxies]
    assert after.applications["bystander"] == before.applications["bystander"]
    await shared.delete("after")


async def test_an_instance_s_sockets_are_its_user_s_alone(shared: Instance) -> None:
    for place in (shared.home.sockets, shared.home.root):
        assert place.stat().st_mode & 0o077 == 0


# ----------------------------------------------------------------------------- in the handlers

_TOLD = {
    "sys.exit": "SystemExit: on purpose",
    "BaseException": "_Unheard",
    "unjson": "or a Starlette response",
}


@pytest.mark.parametrize("app", [BadManners, BadMannersInThread], ids=["async", "thread"])
async def test_bad_manners_end_one_request(shared: Instance, bystander: Load, app: Any) -> None:
    limit_s = engines.patient(10)
    async with shared.running(app.bind(), "manners") as url, client(timeout_s=limit_s) as session:

        async def ask_for(how: str, method: str = "POST") -> tuple[int, bytes]:
            answer = await ask(session, f"{url}?how={how}", method=method)
            assert answer.status, (how, answer)
            return answer.status, answer.body

        for how in ("sys.exit", "BaseException", "unjson"):
            before = await shared.pids("manners")
            assert await ask_for(how) == (500, b"Internal Server Error"), how
            # The client is told nothing, the log all.
            await shared.logged(_TOLD[how])
            assert await shared.pids("manners") == before, how
        for how in ("descriptors", "print", "fork", "threads"):
            assert (await ask_for(how))[0] == 200, how
        for _ in range(20):
            assert await ask_for("well") == (200, b"well")
        for how in ("os._exit", "abort"):
            before = await shared.replicas("manners", 2)
            status, _ = await ask_for(how)
            assert status == 500
            await shared.replicas("manners", 2, without=before - await shared.pids("manners"))
        await shared.replicas("manners", 2)
        assert await ask_for("well") == (200, b"well")


async def test_keyboard_interrupt_in_a_handler_ends_one_request(
    shared: Instance, bystander: Load
) -> None:
    async with shared.running(BadManners.bind(), "interrupt") as url:
        assert (await get(f"{url}?how=KeyboardInterrupt")).status == 500
        await shared.replicas("interrupt", 2)
        assert (await get(f"{url}?how=well")).body == b"well"


async def test_a_request_that_kills_replicas_is_not_given_all_of_them(
    shared: Instance, bystander: Load
) -> None:
    async with shared.running(BadManners.options(num_replicas=4).bind(), "poison") as url:
        before = await shared.pids("poison")
        # A GET is safe to repeat, so it is, but not for ever.
        assert (await get(f"{url}?how=os._exit")).status == 500
        assert len(before & await shared.pids("poison")) >= 1
        after = await shared.replicas("poison", 4)
        assert len(after & before) >= 1
        assert (await get(f"{url}?how=well")).body == b"well"


async def test_a_forked_child_does_not_keep_a_dead_replica_s_requests(
    shared: Instance, bystander: Load
) -> None:
    async with shared.running(BadManners.bind(), "forked") as url:
        async with aiohttp.ClientSession() as session:
            children = [(await ask(session, f"{url}?how=fork")).json for _ in range(4)]
        async with load(f"{url}?how=well") as traffic:
            await traffic.more(50)
            for pid in await shared.pids("forked"):
                kill(pid)
                await shared.replicas("forked", 2, without={pid})
            await traffic.more(50)
        assert traffic.failures == []
        await until_true(
            lambda: not set(children) & set(shared.members()), "the children are gone as well"
        )
