"""What comes out of an ERROR frame, by whether its pickle may be opened."""

from __future__ import annotations

import pickle
import threading
from pathlib import Path

import numpy as np
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


class NeedsTwoError(Exception):
    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"{a}-{b}")
        self.a = a
        self.b = b


class DoublesError(Exception):
    """Unpickles by its constructor, into another text."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no {name}")


class HoldsLockError(Exception):
    def __init__(self) -> None:
        super().__init__("x")
        self.lock = threading.Lock()


class HoldsArrayError(Exception):
    def __init__(self) -> None:
        super().__init__("x")
        self.array = np.ones(10)


class StubbornError(Exception):
    def __reduce__(self) -> tuple[object, ...]:
        return int, ("nonsense",)


def test_an_exception_whose_constructor_takes_other_arguments_stays_what_it_is() -> None:
    found = decode_error_frame(*encode_error(NeedsTwoError(1, 2)), unpickle=True)
    assert type(found) is NeedsTwoError
    assert (str(found), found.a, found.b) == ("1-2", 1, 2)


def test_an_exception_says_the_same_on_the_other_side() -> None:
    found = decode_error_frame(*encode_error(DoublesError("fish")), unpickle=True)
    assert type(found) is DoublesError
    assert str(found) == "no fish"


def test_an_exception_may_hold_an_array() -> None:
    found = decode_error_frame(*encode_error(HoldsArrayError()), unpickle=True)
    assert type(found) is HoldsArrayError
    assert found.array.sum() == 10


@pytest.mark.parametrize(
    ("error", "reason"),
    [(HoldsLockError(), "cannot pickle '_thread.lock'"), (StubbornError(), "invalid literal")],
)
def test_what_cannot_travel_says_why_and_what_to_do(
    error: Exception, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("WARNING", "remora"):
        frame = encode_error(error)
        encode_error(error)
    found = decode_error_frame(*frame, unpickle=True)
    assert type(found) is RemoteError
    name = type(error).__name__
    for text in (str(found), caplog.text):
        assert f"{name} cannot be sent to the caller as itself: " in text
        assert reason in text
        assert "__reduce__" in text
    # Once for each class.
    assert len(caplog.records) == 1
