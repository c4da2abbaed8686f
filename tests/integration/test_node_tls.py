"""TLS between nodes: who gets in, what everybody else hears, on both sides, and what leaves it as it was."""

from __future__ import annotations

import asyncio
import datetime
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trustme
from tests.integration.rig import until

from remora.errors import ConfigError, ConnectionLostError
from remora.options.node import PLAIN, NodeOptions, node_options
from remora.transport import strangers
from remora.transport.channel import Channel, connect
from remora.transport.control import call_control, serve_control
from remora.transport.membership import Membership, join, mine
from remora.transport.node_tls import check_files

HOST = "127.0.0.1"
TOKEN = "secret"
AUTHORITY, OTHER = trustme.CA(), trustme.CA()
EXPIRED = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
#: More than a record, a chunk and a window of TLS.
LARGE = bytes(range(256)) * 4 * 1024 * 3


class Data(msgspec.Struct):
    data: bytes


def write(folder: Path, name: str, *, by: trustme.CA = AUTHORITY, **options: Any) -> NodeOptions:
    """Files of a node for which `by` vouches, and which trusts AUTHORITY."""
    issued = by.issue_cert(options.pop("host", HOST), **options)
    paths = {part: folder / f"{name}-{part}.pem" for part in NodeOptions.__struct_fields__}
    issued.private_key_pem.write_to_path(paths["ssl_keyfile"])
    paths["ssl_certfile"].write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    AUTHORITY.cert_pem.write_to_path(paths["ssl_ca_certs"])
    return NodeOptions(**{part: str(path) for part, path in paths.items()})


@pytest.fixture
def node(tmp_path: Path) -> NodeOptions:
    return write(tmp_path, "node")


@pytest.fixture(autouse=True)
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test begins as a process does."""
    monkeypatch.setattr(strangers, "_told", strangers.Told())
    before = mine()
    yield
    join(before)


@asynccontextmanager
async def served(options: NodeOptions) -> AsyncIterator[str]:
    """A process of the instance on a node with these options; its address is the value."""
    started: list[str] = []

    async def echo(body: bytes) -> bytes:
        started.append("echo")
        return body

    sock = socket.create_server((HOST, 0))
    join(Membership("n1", TOKEN, options))
    server = await serve_control(sock, {"echo": echo}, TOKEN)
    try:
        yield f"tcp:{HOST}:{sock.getsockname()[1]}"
    finally:
        server.close()


async def ask(address: str, options: NodeOptions, data: bytes = b"x", token: str = TOKEN) -> bytes:
    """Call it from a node with these options."""
    join(Membership("n2", token, options))
    channel: Channel = await connect(address, name="a peer")
    try:
        await channel.wait_greeted()
        return (await call_control(channel, "echo", Data(data), Data, timeout_s=5)).data
    finally:
        channel.close()


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


async def test_nodes_of_one_authority_talk(node: NodeOptions) -> None:
    async with served(node) as address:
        for data in (b"", b"x", LARGE):
            assert await ask(address, node, data) == data


async def test_many_calls_at_once_arrive_whole(node: NodeOptions) -> None:
    async with served(node) as address:
        join(Membership("n2", TOKEN, node))
        channel = await connect(address, name="a peer")
        sizes = [1, 20_000, 70_000, 300_000, 16_384, 0] * 8
        found = await asyncio.gather(
            *(call_control(channel, "echo", Data(b"y" * size), Data) for size in sizes)
        )
        assert [len(each.data) for each in found] == sizes
        channel.close()


NO_TLS = "it does not use TLS, and the nodes of this instance do"
#: Who asks, what it hears, and what the log of the other side says.
STRANGERS: list[tuple[str, Callable[[Path], NodeOptions], str, str]] = [
    ("plain", lambda _: PLAIN, "it takes TLS alone", NO_TLS),
    (
        "another authority's",
        lambda folder: write(folder, "other", by=OTHER),
        "does not take our certificate: unknown ca",
        "its certificate is not taken: unable to get local issuer certificate",
    ),
    (
        "expired",
        lambda folder: write(folder, "old", not_after=EXPIRED),
        "does not take our certificate: certificate expired",
        "its certificate is not taken: certificate has expired",
    ),
]


@pytest.mark.parametrize("who", [each[0] for each in STRANGERS])
async def test_strangers_are_refused_and_both_sides_say_why(
    node: NodeOptions, tmp_path: Path, caplog: pytest.LogCaptureFixture, who: str
) -> None:
    make, hears, logged = next(each[1:] for each in STRANGERS if each[0] == who)
    options = make(tmp_path)
    async with served(node) as address:
        for _ in range(3):
            with pytest.raises(ConnectionLostError, match=hears):
                await ask(address, options)
        # Told once on each side, however often it is tried.
        texts = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
        assert [text for text in texts if text.startswith("Refused")] == [
            text for text in texts if f"Refused a connection from {HOST}: {logged}" in text
        ]
        assert len(texts) == 2, texts
        assert await ask(address, node) == b"x"


async def test_who_shows_no_certificate_is_refused(
    node: NodeOptions, caplog: pytest.LogCaptureFixture
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    AUTHORITY.configure_trust(context)
    async with served(node) as address:
        reader, writer = await asyncio.open_connection(HOST, port_of(address), ssl=context)
        with pytest.raises(ssl.SSLError, match="CERTIFICATE_REQUIRED"):
            await asyncio.wait_for(reader.read(), 5)
        writer.close()
        assert "it shows no certificate: nodes and programs need the node_options" in caplog.text


async def test_a_node_with_tls_says_so_to_one_without(
    node: NodeOptions, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(PLAIN) as address:
        with pytest.raises(
            ConnectionLostError, match=f"No secure connection to {address}: {NO_TLS}"
        ):
            await ask(address, node)
        assert f"from {HOST}: it uses TLS, and the nodes of this instance do not" in caplog.text
        assert await ask(address, PLAIN) == b"x"


async def test_a_certificate_does_not_stand_for_the_token(
    node: NodeOptions, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(node) as address:
        with pytest.raises(ConnectionLostError, match="wrong cluster token"):
            await ask(address, node, token="another")
        await until(lambda: f"Refused a connection from {HOST}: wrong cluster token" in caplog.text)


async def test_the_other_side_must_be_who_was_asked_for(node: NodeOptions, tmp_path: Path) -> None:
    async with served(write(tmp_path, "elsewhere", host="10.9.9.9")) as address:
        with pytest.raises(ConnectionLostError, match="IP address mismatch"):
            await ask(address, node)


@pytest.mark.parametrize(
    "data", [b"", b"\x16", b"\x16\x03\x01", b"GET / HTTP/1.1\r\n\r\n", b"\0" * 9]
)
async def test_other_talk_ends_its_own_connection_and_no_other(
    node: NodeOptions,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    data: bytes,
) -> None:
    monkeypatch.setattr(strangers, "HELLO_TIMEOUT_S", 0.2)
    async with served(node) as address:
        reader, writer = await asyncio.open_connection(HOST, port_of(address))
        writer.write(data)
        try:
            await asyncio.wait_for(reader.read(), 5)
        except ConnectionResetError:
            pass
        writer.close()
        await until(lambda: "Refused a connection" in caplog.text)
        assert await ask(address, node) == b"x"


async def test_new_connections_get_a_renewed_certificate(
    node: NodeOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("remora.transport.node_tls.LOOK_EVERY_S", 0.0)
    async with served(node) as address:
        assert await ask(address, node) == b"x"
        # Both sides move to another authority, in place.
        write(tmp_path, "node", by=OTHER)
        OTHER.cert_pem.write_to_path(str(node.ssl_ca_certs))
        assert await ask(address, node) == b"x"


def test_files_that_others_would_not_take_are_told_at_start(
    node: NodeOptions, tmp_path: Path
) -> None:
    check_files(node, HOST)
    with pytest.raises(ConfigError, match=r"this node \(10\.0\.0\.1\).* name 10\.0\.0\.1"):
        check_files(node, "10.0.0.1")
    old = write(tmp_path, "old", not_after=EXPIRED)
    with pytest.raises(ConfigError, match="certificate has expired"):
        check_files(old, HOST)
    with pytest.raises(ConfigError, match="unable to get local issuer"):
        check_files(write(tmp_path, "other", by=OTHER), HOST)
    Path(str(node.ssl_keyfile)).unlink()
    with pytest.raises(ConfigError, match=r"node_options\['ssl_keyfile'\].*cannot be read"):
        check_files(node, HOST)


def test_all_three_files_or_none() -> None:
    assert not node_options(None)
    with pytest.raises(ConfigError, match=r"node_options\['ssl_ca_certs'\]"):
        node_options({"ssl_certfile": "a", "ssl_keyfile": "b"})
    with pytest.raises(ConfigError, match="Did you mean 'ssl_certfile'"):
        node_options({"ssl_certfil": "a"})
