"""What comes out of an ERROR frame, by whether its pickle may be opened."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from remora.errors import ConnectionLostError, RemoteError
from remora.transport.errors import decode_error_frame, encode_error
from remora.wire.codec import pack
from remora.wire.messages import ErrorMeta


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self._path,)


def test_a_pickle_is_left_alone_where_it_may_not_be_opened(tmp_path: Path) -> None:
    meta = pack(ErrorMeta("Trap", "boo", "line 1\n", from_user=True))
    body = pickle.dumps(Trap(tmp_path / "sprung"))
    error = decode_error_frame(meta, body, unpickle=False)
    assert type(error) is RemoteError
    assert str(error) == "Trap: boo"
    assert error.__notes__ == ["Remote traceback:\nline 1"]
    assert not (tmp_path / "sprung").exists()
    decode_error_frame(meta, body, unpickle=True)
    assert (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("too blue"), "ValueError: too blue"),
        # Our own messages say everything that there is to say.
        (ConnectionLostError("the database is gone"), "the database is gone"),
    ],
)
def test_the_text_travels_without_the_pickle(error: Exception, text: str) -> None:
    found = decode_error_frame(*encode_error(error), unpickle=False)
    assert type(found) is RemoteError
    assert str(found) == text
    assert type(decode_error_frame(*encode_error(error), unpickle=True)) is type(error)
