from pathlib import Path
from typing import Any

import pytest
import trustme

from remora.proxy.grpc.tls import Certificate
from remora.wire.grpc import GrpcSetup

AUTHORITY = trustme.CA()


def write_pair(folder: Path) -> GrpcSetup:
    issued = AUTHORITY.issue_cert("localhost")
    key, certificate = folder / "key.pem", folder / "cert.pem"
    issued.private_key_pem.write_to_path(key)
    certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    return GrpcSetup(host="127.0.0.1", port=0, ssl_keyfile=str(key), ssl_certfile=str(certificate))


def test_files_that_change_while_they_are_read_are_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate = Certificate(write_pair(tmp_path))
    assert certificate._renewed() is None
    write_pair(tmp_path)
    read = Certificate._read

    def and_half_a_pair(self: Certificate) -> Any:
        (tmp_path / "key.pem").write_text("of the next pair")
        return read(self)

    monkeypatch.setattr(Certificate, "_read", and_half_a_pair)
    assert certificate._renewed() is None
    monkeypatch.undo()
    assert certificate._renewed() is None
    write_pair(tmp_path)
    assert certificate._renewed() is not None
