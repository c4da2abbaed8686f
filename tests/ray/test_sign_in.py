"""A cluster that wants a token: joined where that is the user's own, told at once otherwise."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import Mock

import pytest

from remora.engine.ray import sign_in as signing
from remora.engine.ray.greeting import Greeting, _ask, _is_here, _read_status, greet, request
from remora.engine.ray.sign_in import MODE, shows_token, sign_in
from remora.errors import InstanceError

#: How gRPC's server begins: settings, and an acknowledgement.
SETTINGS = bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
REFUSES = b"\x00\x00\x14\x01\x05\x00\x00\x00\x01\x88\x00\x0bgrpc-status\x0216"
TAKES = b"\x00\x00\x0f\x01\x05\x00\x00\x00\x01@\x0bgrpc-status\x010"
TOKEN = "t" * 64


@pytest.fixture(autouse=True)
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A user with a token, who has not said whether it is to be shown."""
    path = tmp_path / "token"
    path.write_text(TOKEN)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    # Set at first, so that whatever is set here is taken back in the end.
    monkeypatch.setenv(MODE, "")
    monkeypatch.delenv(MODE)
    _read_again()
    yield
    monkeypatch.undo()
    _read_again()


def _read_again() -> None:
    signing._ray.Config.initialize("")
    signing._ray.AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def head(token: str) -> Iterator[str]:
    """Something that answers as Ray's head does, and takes this token; yields its address."""

    def serve() -> None:
        while True:
            connection, _ = listener.accept()
            with connection:
                asked = connection.recv(4096)
                if not asked:
                    return
                # In pieces, as a network may bring it.
                connection.sendall(SETTINGS)
                answer = TAKES if f"Bearer {token}".encode() in asked else REFUSES
                connection.sendall(answer[:20])
                connection.sendall(answer[20:])
                connection.recv(1)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        thread = threading.Thread(target=serve)
        thread.start()
        yield address
        socket.create_connection(listener.getsockname()).close()
        thread.join()


def test_the_token_of_the_user_is_shown_to_a_cluster_of_this_machine() -> None:
    with head(TOKEN) as address:
        sign_in(address)
    assert shows_token()
    assert os.environ[MODE] == "token"


def test_another_token_is_told_at_once_and_shown_no_more() -> None:
    with head("another") as address, pytest.raises(InstanceError, match="wants a token: it takes"):
        sign_in(address)
    assert not shows_token()
    assert MODE not in os.environ


def test_a_token_that_was_asked_for_and_is_wrong_is_told_at_once() -> None:
    signing.show_token()
    with head("another") as address, pytest.raises(InstanceError, match="than the one that it was"):
        sign_in(address)


def test_a_user_without_a_token_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    monkeypatch.setenv("HOME", str(tmp_path))
    _read_again()
    with head(TOKEN) as address, pytest.raises(InstanceError, match="this program has none"):
        sign_in(address)


def test_who_says_that_none_is_shown_shows_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MODE, "disabled")
    _read_again()
    with head(TOKEN) as address, pytest.raises(InstanceError, match="=disabled says to show none"):
        sign_in(address)


def test_another_machine_is_shown_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []

    def far(address: str, authorization: str, *, speaks_tls: bool = False) -> Greeting:
        shown.append(authorization)
        return Greeting(refuses=True, is_here=False)

    monkeypatch.setattr(signing, "greet", far)
    with pytest.raises(InstanceError, match=r"only when asked for.*RAY_AUTH_MODE=token"):
        sign_in("192.0.2.9:6379")
    assert shown == [""]


def test_a_real_head_takes_the_question(cluster: object) -> None:
    address = vars(cluster)["head_node"].gcs_address
    assert greet(address) == Greeting(refuses=False, is_here=True)


def test_ends_of_one_machine_are_told_apart() -> None:
    assert _is_here("192.0.2.2", "192.0.2.2")
    assert _is_here("::1", "::1")
    assert _is_here("127.0.0.1", "127.0.0.2")
    assert not _is_here("192.0.2.2", "192.0.2.3")
    assert not _is_here("fe80::1%eth0", "fe80::2%eth0")


def test_long_values_have_their_length_in_sevens_of_bits() -> None:
    assert b"\x1f\x08\x7e" + b"x" * 126 in request("h:1", "x" * 126)
    assert b"\x1f\x08\x7f\x00" + b"x" * 127 in request("h:1", "x" * 127)
    assert b"\x1f\x08\x7f\xad\x01" + b"x" * 300 in request("h:1", "x" * 300)


def test_a_status_is_read_when_it_is_there_whole() -> None:
    whole = b"\x00\x0bgrpc-status\x0216\x00"
    for end in range(len(whole) - 1):
        assert _read_status(whole[:end]) is None
    assert _read_status(whole[:-1]) == _read_status(whole) == 16
    assert _read_status(b"grpc-status\x010") == 0


def test_an_answer_may_come_byte_by_byte() -> None:
    for answer, refuses in ((REFUSES, True), (TAKES, False)):
        connection = Mock(spec=socket.socket)
        connection.recv.side_effect = [bytes((each,)) for each in SETTINGS + answer]
        assert _ask(connection, "127.0.0.1:6379", "") is refuses
