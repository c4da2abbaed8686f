import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme

from remora.config import HTTPOptions, http_options
from remora.errors import ConfigError
from remora.transport.tls import ReloadingContext, server_context

AUTHORITY = trustme.CA()


def write_pair(folder: Path, name: str = "localhost") -> dict[str, Any]:
    issued = AUTHORITY.issue_cert(name)
    key, certificate = folder / "key.pem", folder / "cert.pem"
    issued.private_key_pem.write_to_path(key)
    certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    return {"ssl_keyfile": str(key), "ssl_certfile": str(certificate)}


def served_name(context: ssl.SSLContext, identity: trustme.LeafCert | None = None) -> str:
    """Shake hands in memory, and return the name in the certificate."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    trusting = ssl.create_default_context()
    AUTHORITY.configure_trust(trusting)
    trusting.check_hostname = False
    if identity is not None:
        identity.configure_cert(trusting)
    client = trusting.wrap_bio(to_client, to_server)
    server = context.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):
        for side in (client, server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    certificate = client.getpeercert()
    assert certificate is not None
    names = certificate["subjectAltName"]
    return str(names[0][1])


def test_without_a_certificate_there_is_no_context() -> None:
    assert server_context(HTTPOptions()) is None


def test_a_changed_pair_is_served_to_new_connections(tmp_path: Path) -> None:
    tls = ReloadingContext(HTTPOptions(**write_pair(tmp_path, "old.test")))
    assert tls.context is not None
    assert served_name(tls.context) == "old.test"
    write_pair(tmp_path, "new.test")
    tls.look()
    assert served_name(tls.context) == "new.test"


def test_an_authority_that_was_taken_out_is_trusted_no_more(tmp_path: Path) -> None:
    files = write_pair(tmp_path)
    old, new = trustme.CA(), trustme.CA()
    authorities = tmp_path / "authorities.pem"
    old.cert_pem.write_to_path(authorities)
    tls = ReloadingContext(HTTPOptions(**files, ssl_ca_certs=str(authorities)))
    assert tls.context is not None
    served_name(tls.context, old.issue_cert("client"))
    new.cert_pem.write_to_path(authorities)
    tls.look()
    served_name(tls.context, new.issue_cert("client"))
    with pytest.raises(ssl.SSLCertVerificationError):
        served_name(tls.context, old.issue_cert("client"))


def test_files_that_change_while_they_are_read_leave_a_whole_pair_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = write_pair(tmp_path, "old.test")
    tls = ReloadingContext(HTTPOptions(**files))
    other = tmp_path / "other"
    other.mkdir()
    third = Path(write_pair(other, "third.test")["ssl_certfile"]).read_bytes()
    write_pair(tmp_path, "new.test")
    read = ssl.SSLContext.load_cert_chain

    def and_then_change(context: ssl.SSLContext, *args: Any) -> None:
        read(context, *args)
        Path(files["ssl_certfile"]).write_bytes(third)

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", and_then_change)
    tls.look()
    monkeypatch.undo()
    for _ in range(2):
        assert tls.context is not None
        assert served_name(tls.context) == "new.test"
        tls.look()


def test_a_half_written_pair_leaves_the_old_one_in_use(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files = write_pair(tmp_path, "old.test")
    tls = ReloadingContext(HTTPOptions(**files))
    assert tls.context is not None
    other = tmp_path / "other"
    other.mkdir()
    renewed = write_pair(other, "new.test")
    Path(files["ssl_certfile"]).write_bytes(Path(renewed["ssl_certfile"]).read_bytes())
    tls.look()
    tls.look()
    assert served_name(tls.context) == "old.test"
    assert caplog.text.count("the old one stays") == 1
    Path(files["ssl_keyfile"]).write_bytes(Path(renewed["ssl_keyfile"]).read_bytes())
    tls.look()
    assert served_name(tls.context) == "new.test"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    files = write_pair(tmp_path)
    Path(files["ssl_keyfile"]).unlink()
    with pytest.raises(ConfigError, match=r"ssl_keyfile.*cannot be read"):
        server_context(HTTPOptions(**files))


@pytest.mark.parametrize("field", ["ssl_keyfile", "ssl_certfile"])
def test_junk_in_a_file_is_named(tmp_path: Path, field: str) -> None:
    files = write_pair(tmp_path)
    Path(files[field]).write_text("junk")
    with pytest.raises(ConfigError, match="belong together"):
        server_context(HTTPOptions(**files))


def test_an_encrypted_key_needs_its_password(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization as s

    files = write_pair(tmp_path)
    path = Path(files["ssl_keyfile"])
    key = s.load_pem_private_key(path.read_bytes(), None)
    path.write_bytes(
        key.private_bytes(
            s.Encoding.PEM, s.PrivateFormat.PKCS8, s.BestAvailableEncryption(b"secret")
        )
    )
    with pytest.raises(ConfigError, match="ssl_keyfile_password"):
        server_context(HTTPOptions(**files))
    assert server_context(HTTPOptions(**files, ssl_keyfile_password="secret")) is not None


@pytest.mark.parametrize("field", ["ssl_keyfile", "ssl_certfile"])
def test_a_key_or_certificate_alone_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match="both ssl_keyfile and ssl_certfile"):
        http_options({field: "some.pem"})


@pytest.mark.parametrize("field", ["ssl_keyfile_password", "ssl_ca_certs"])
def test_what_needs_a_certificate_is_refused_without(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field}.*needs"):
        http_options({field: "secret"})


def test_a_password_never_stands_in_a_message() -> None:
    with pytest.raises(ValueError, match="needs") as refused:
        http_options({"ssl_keyfile_password": "secret"})
    assert "secret" not in str(refused.value)
