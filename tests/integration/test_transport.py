"""Connections between processes: strangers, junk, silence, tokens, versions, control calls."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import msgspec
import pytest
from tests.integration.rig import Rig, call, until

from remora.errors import ConnectionLostError, MethodNotFoundError, RemoteError
from remora.transport import strangers, tcp
from remora.transport.channel import CONNECT_LIMIT_S, connect
from remora.transport.control import call_control, serve_control, stream_control
from remora.transport.proving import Proving, UnprovedError
from remora.wire.codec import pack
from remora.wire.framing import MAX_HELLO_BYTES, encode
from remora.wire.messages import WIRE_VERSION, FrameKind, Hello
from remora.wire.proof import NONCE_BYTES, ProvingCaller, ProvingListener, Reason, refusal


class App:
    async def echo(self, x: Any) -> Any:
        return x


HELLO = encode(FrameKind.HELLO, 0, pack(Hello(WIRE_VERSION)))
NONCE = bytes(NONCE_BYTES)
CALLER = ProvingCaller("secret", NONCE, "")
CALL = CALLER.begin()
PROOF = CALLER.receive(ProvingListener("secret", NONCE, "").receive(CALL))


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
        b"\x00" * 64,
        b"\xff" * 64,
        struct.pack("<IIBBHI", MAX_HELLO_BYTES + 1, 0, 1, 0, 0, 0),
        encode(FrameKind.REQUEST, 1, b"x"),
        encode(FrameKind.HELLO, 0, b"\xc1"),
        encode(FrameKind.HELLO, 0, pack(Hello(WIRE_VERSION + 1))),
        HELLO + encode(FrameKind.REQUEST, 1, b"\xc1"),
        HELLO + b"\xff" * 64,
    ],
)
async def test_junk_closes_its_own_connection_and_no_other(rig: Rig, data: bytes) -> None:
    node, router = await rig.pair(App)
    reader, writer = await asyncio.open_unix_connection(node.path)
    writer.write(data)
    try:
        await asyncio.wait_for(reader.read(), 5)
    except ConnectionResetError:
        pass
    writer.close()
    assert await call(router, "echo", 1) == 1
    await until(lambda: len(node.replica._connections) == 1)


async def test_who_never_greets_is_cut_off(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("remora.transport.strangers.HELLO_TIMEOUT_S", 0.05)
    node, router = await rig.pair(App)
    for data in (b"", HELLO[:5]):
        reader, writer = await asyncio.open_unix_connection(node.path)
        writer.write(data)
        try:
            assert await asyncio.wait_for(reader.read(), 5) == b""
        except ConnectionResetError:
            pass
        writer.close()
    assert await call(router, "echo", 1) == 1
    await until(lambda: len(node.replica._connections) == 1)


class Number(msgspec.Struct):
    n: int


class Methods:
    def __init__(self) -> None:
        self.ended = 0
        self.cancelled = 0

    async def double(self, body: bytes) -> bytes:
        return pack(Number(2 * msgspec.msgpack.decode(body, type=Number).n))

    async def count(self, body: bytes) -> AsyncIterator[bytes]:
        try:
            for n in range(msgspec.msgpack.decode(body, type=Number).n):
                yield pack(Number(n))
        finally:
            self.ended += 1

    async def fail(self, body: bytes) -> bytes:
        raise LookupError("not here")

    async def hang(self, body: bytes) -> bytes:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return b""


async def served(token: str = "secret") -> tuple[Methods, asyncio.Server, str]:
    methods = Methods()
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    names = ("double", "count", "fail", "hang")
    handlers: Any = {name: getattr(methods, name) for name in names}
    server = await serve_control(sock, handlers, token)
    return methods, server, f"tcp:127.0.0.1:{sock.getsockname()[1]}"


async def test_tcp_needs_the_token() -> None:
    _, server, address = await served("secret")
    for token in ("Secret", "secret "):
        with pytest.raises(ConnectionLostError, match="wrong cluster token"):
            await connect(address, name="stranger", token=token)
    with pytest.raises(ConnectionLostError, match="this process has no cluster token"):
        await connect(address, name="stranger")
    channel = await connect(address, name="friend", token="secret")
    assert await call_control(channel, "double", Number(4), Number) == Number(8)
    channel.close()
    server.close()


async def test_an_empty_token_proves_nothing() -> None:
    _, server, address = await served("")
    for token in ("", "secret"):
        with pytest.raises(ConnectionLostError):
            await connect(address, name="stranger", token=token)
    server.close()


#: What somebody says on a port of ours, and what the log makes of it.
OTHERS = [
    (b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", "it speaks HTTP: this port is for processes"),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "it speaks HTTP"),
    (b"SSH-2.0-OpenSSH_9.2\r\n", "it speaks SSH"),
    (bytes.fromhex("16030100c8010000c40303") + b"\x01" * 40, "it uses TLS, and the nodes"),
    (b"\xde\xad" * 40, "no proof of the token: it speaks something else"),
    (HELLO, "no proof of the token: it speaks something else"),
    (refusal(Reason.WRONG_TOKEN), "wrong cluster token: it is of another instance"),
    (CALL + bytes(300), "no proof of the token: it speaks something else"),
    (CALL + CALL, "no proof of the token: message 1 comes out of turn"),
    (CALL + PROOF[:6] + bytes(32), "wrong cluster token: it is of another instance"),
    (CALL[:4] + b"\x09" + CALL[5:], "it proves the token in version 9, this process in 1: run the"),
    (b"", "no greeting: it has sent none within"),
    # It begins well, and goes no further.
    (CALL, "no greeting: it has sent none within"),
    (CALL[:9], "no greeting: it has sent none within"),
]


@pytest.mark.parametrize(("data", "told"), OTHERS)
async def test_who_has_no_business_here_is_told_of_once_and_disturbs_nobody(
    data: bytes, told: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(strangers, "HELLO_TIMEOUT_S", 0.1)
    monkeypatch.setattr(strangers, "_told", strangers.Told())
    _, server, address = await served("secret")
    friend = await connect(address, name="friend", token="secret")
    port = int(address.rpartition(":")[2])
    for _ in range(3):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(data)
        try:
            await asyncio.wait_for(reader.read(), 5)
        except ConnectionResetError:
            pass
        writer.close()
        assert await call_control(friend, "double", Number(2), Number) == Number(4)
    friend.close()
    server.close()
    warnings = [
        each.getMessage()
        for each in caplog.records
        if each.levelno == logging.WARNING and each.name.startswith("remora")
    ]
    assert len(warnings) == 1, warnings
    assert f"Refused a connection from 127.0.0.1: {told}" in warnings[0]


async def test_who_is_refused_hears_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(strangers, "_told", strangers.Told())
    _, server, address = await served("secret")
    for _ in range(3):
        with pytest.raises(
            ConnectionLostError, match=f"to {address}: wrong cluster token: it is of"
        ):
            await connect(address, name="stranger", token="another")
    await until(lambda: "Refused" in caplog.text)
    server.close()
    # Told once on each side, however often it is tried.
    told = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    wrong = "wrong cluster token: it is of another instance"
    assert sorted(text.partition(", or")[0] for text in told) == [
        f"No connection to {address}: {wrong}",
        f"Refused a connection from 127.0.0.1: {wrong}",
    ]


async def test_who_holds_a_port_hears_no_token_and_cannot_pose_as_a_process() -> None:
    _, server, address = await served("secret")
    heard = bytearray()

    async def pose(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Have a process of the instance answer what is asked here."""
        theirs = await asyncio.open_connection("127.0.0.1", int(address.rpartition(":")[2]))
        for one, other in ((reader, theirs[1]), (theirs[0], writer), (reader, theirs[1])):
            data = await one.read(4096)
            heard.extend(data)
            other.write(data)
        for each in (writer, theirs[1]):
            each.close()

    async with await asyncio.start_server(pose, "127.0.0.1", 0) as posing:
        port = posing.sockets[0].getsockname()[1]
        with pytest.raises(ConnectionLostError, match="or somebody else listens there"):
            await connect(f"tcp:127.0.0.1:{port}", name="who was fooled before", token="secret")
    assert heard
    assert b"secret" not in heard
    server.close()


async def test_who_resets_the_connection_is_told_like_any_other_loss() -> None:
    def reset() -> None:
        while True:
            try:
                taken, _ = listener.accept()
            except OSError:
                return
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            taken.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"tcp:127.0.0.1:{listener.getsockname()[1]}"
        thread = threading.Thread(target=reset)
        thread.start()
        try:
            async with asyncio.timeout(CONNECT_LIMIT_S):
                # At whatever moment of the connection it comes.
                for _ in range(100):
                    with pytest.raises(ConnectionLostError):
                        await connect(address, name="test", token="secret")
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize("accepts", [True, False])
async def test_a_connection_without_ends_is_let_go(accepts: bool) -> None:
    # What a transport knows of a connection that was reset before it was looked at.
    gone = Mock(spec=asyncio.Transport)
    gone.get_extra_info.return_value = None
    proving = Proving[asyncio.Protocol](asyncio.Protocol, "secret", accepts=accepts)
    proving.connection_made(gone)
    proving.data_received(CALL)
    proving.connection_lost(None)
    gone.abort.assert_called_once_with()
    gone.write.assert_not_called()
    if not accepts:
        with pytest.raises(UnprovedError, match="the other side closed the connection"):
            await proving.inner
    with pytest.raises(OSError, match="has closed the connection"):
        tcp.notice_loss(None)


async def test_who_does_not_answer_is_given_up_after_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("remora.transport.channel.CONNECT_LIMIT_S", 0.1)
    # A queue that is full takes no more connections, and does not say so.
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        port = full.getsockname()[1]
        others = []
        for _ in range(3):
            other = socket.socket()
            other.setblocking(False)
            other.connect_ex(("127.0.0.1", port))
            others.append(other)
        with pytest.raises(ConnectionLostError, match=r"within 0\.1 s: is that node cut off"):
            await connect(f"tcp:127.0.0.1:{port}", name="test")
        for other in others:
            other.close()


async def test_the_file_of_a_socket_stays_for_who_listens_there_next(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()
        server = await serve_control(sock.dup(), {})
        server.close()
        await server.wait_closed()
        assert path.is_socket()


async def test_control_calls_and_streams() -> None:
    methods, server, address = await served()
    channel = await connect(address, name="test", token="secret")
    assert await call_control(channel, "double", Number(2), Number) == Number(4)
    seen = [item.n async for item in stream_control(channel, "count", Number(500), Number)]
    assert seen == list(range(500))
    with pytest.raises(RemoteError, match="LookupError: not here"):
        await call_control(channel, "fail")
    with pytest.raises(LookupError, match="not here"):
        await call_control(channel, "fail", unpickle=True)
    with pytest.raises(RemoteError, match="count, double"):
        await call_control(channel, "nothing")
    with pytest.raises(MethodNotFoundError, match="count, double"):
        await call_control(channel, "nothing", unpickle=True)
    with pytest.raises(TimeoutError):
        await call_control(channel, "hang", timeout_s=0.02)
    await until(lambda: methods.cancelled == 1)
    stream = stream_control(channel, "count", Number(10**9), Number)
    assert (await anext(stream)).n == 0
    await stream.aclose()  # type: ignore[attr-defined]
    await until(lambda: methods.ended == 2)
    assert channel._sinks == {}
    waiting: asyncio.Task[None] = asyncio.create_task(call_control(channel, "hang"))
    await asyncio.sleep(0)
    channel.close()
    with pytest.raises(ConnectionLostError):
        await waiting
    await until(lambda: methods.cancelled == 2)
    server.close()


async def test_nobody_there_is_said_at_once(rig: Rig) -> None:
    with pytest.raises(ConnectionLostError, match="Nothing answers"):
        await connect(f"unix:{rig.folder}/none.sock", name="test")
