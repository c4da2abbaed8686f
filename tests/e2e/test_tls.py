"""HTTPS from outside: real instances, certificates in files, clients that check them."""

from __future__ import annotations

import ssl
from pathlib import Path

import httpx2
import pytest
import trustme
from tests.e2e.apps import Echo
from tests.e2e.conftest import StartInstance
from tests.e2e.instances import Instance
from tests.e2e.waiting import until_async

import remora
from remora.errors import ConfigError

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(60)]


def write_pair(authority: trustme.CA, folder: Path) -> dict[str, str]:
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(folder / "key.pem")
    (folder / "cert.pem").write_bytes(b"".join(b.bytes() for b in issued.cert_chain_pems))
    return {
        "ssl_keyfile": str(folder / "key.pem"),
        "ssl_certfile": str(folder / "cert.pem"),
    }


def client(authority: trustme.CA, identity: trustme.LeafCert | None = None) -> httpx2.AsyncClient:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    if identity is not None:
        identity.configure_cert(context)
    return httpx2.AsyncClient(verify=context)


async def test_https_is_served_and_a_renewed_certificate_is_taken_in_place(
    start_instance: StartInstance, tmp_path: Path
) -> None:
    old, new = trustme.CA(), trustme.CA()
    instance: Instance = start_instance(**write_pair(old, tmp_path))
    assert instance.url.startswith("https://")
    url = await instance.run(Echo.bind("v"), "app")
    async with client(old) as before, client(new) as after:
        assert (await before.get(url)).status_code == 200
        proxies = (await instance.status()).proxies
        write_pair(new, tmp_path)

        async def is_new() -> bool:
            try:
                return (await after.get(url)).status_code == 200
            except httpx2.ConnectError:
                return False

        await until_async(is_new, "the new certificate is served")
        # On its open connection the old client notices nothing.
        assert (await before.get(url)).status_code == 200
        assert (await instance.status()).proxies == proxies


async def test_plain_http_on_an_https_port_disturbs_nobody(
    start_instance: StartInstance, tmp_path: Path
) -> None:
    authority = trustme.CA()
    instance: Instance = start_instance(**write_pair(authority, tmp_path))
    async with httpx2.AsyncClient() as plain, client(authority) as secure:
        with pytest.raises(httpx2.TransportError):
            await plain.get(instance.url.replace("https", "http"))
        assert (await secure.get(f"{instance.url}/-/livez")).text == "success"


async def test_with_authorities_only_their_clients_get_in(
    start_instance: StartInstance, tmp_path: Path
) -> None:
    authority, clients = trustme.CA(), trustme.CA()
    clients.cert_pem.write_to_path(tmp_path / "ca.pem")
    files = write_pair(authority, tmp_path)
    instance: Instance = start_instance(**files, ssl_ca_certs=str(tmp_path / "ca.pem"))
    known = clients.issue_cert("client@example.org")
    async with client(authority) as stranger, client(authority, known) as friend:
        with pytest.raises(httpx2.TransportError):
            await stranger.get(f"{instance.url}/-/livez")
        assert (await friend.get(f"{instance.url}/-/livez")).text == "success"

    # An authority that is taken out of the file is trusted no more, without a restart.
    others = trustme.CA()
    others.cert_pem.write_to_path(tmp_path / "ca.pem")
    newcomer = others.issue_cert("new@example.org")

    async def gets_in(identity: trustme.LeafCert) -> bool:
        async with client(authority, identity) as one:
            try:
                return (await one.get(f"{instance.url}/-/livez")).status_code == 200
            except httpx2.TransportError:
                return False

    async def is_swapped() -> bool:
        return await gets_in(newcomer) and not await gets_in(known)

    await until_async(is_swapped, "the new authority is asked instead of the old one")


def test_a_wrong_file_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REMORA_HOME", str(tmp_path / "home"))
    with pytest.raises(ConfigError, match="ssl_certfile"):
        remora.start(
            http_options={"ssl_keyfile": "no/key.pem", "ssl_certfile": "no/cert.pem", "port": 0}
        )
    assert not (tmp_path / "home").exists()


async def test_the_url_in_messages_is_the_one_that_was_given(start_instance: StartInstance) -> None:
    instance: Instance = start_instance(root_url="https://models.example.org/")
    assert instance.url == "https://models.example.org"
    assert (await instance.status()).http_url == "https://models.example.org"
