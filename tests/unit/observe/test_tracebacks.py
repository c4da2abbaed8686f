"""Which frames of a traceback are the user's."""

from __future__ import annotations

import argparse
import importlib
import sys
import threading
from pathlib import Path

import pytest

from remora.observe.tracebacks import (
    INNERMOST_FRAMES,
    has_user_frames,
    user_stack,
    user_traceback,
)


def test_shows_only_the_frames_of_the_users_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_module_a.py").write_text("def f():\n    1 / 0\n\nf()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ZeroDivisionError) as caught:
        importlib.import_module("broken_module_a")
    # The frame of this test is not ours to hide; below it comes the import machinery.
    error = caught.value
    error.__traceback__ = error.__traceback__.tb_next if error.__traceback__ else None
    text = user_traceback(error)
    assert "importlib" not in text
    assert text.count("broken_module_a.py") == 2
    assert text.endswith("ZeroDivisionError: division by zero\n")


def test_a_syntax_error_still_names_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_module_b.py").write_text("def f(:\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(SyntaxError) as caught:
        importlib.import_module("broken_module_b")
    error = caught.value
    error.__traceback__ = error.__traceback__.tb_next if error.__traceback__ else None
    text = user_traceback(error)
    assert "broken_module_b.py" in text
    assert "importlib" not in text
    assert "broken_module_b" not in sys.modules


def test_a_stack_without_frames_of_the_user_shows_the_innermost() -> None:
    frames: list[str] = []

    class Spy(argparse.Action):
        def __call__(self, *_: object) -> None:
            caller = sys._getframe().f_back
            assert caller is not None
            frames.append(user_stack(caller))

    parser = argparse.ArgumentParser()
    parser.add_argument("--spy", action=Spy)
    thread = threading.Thread(target=parser.parse_args, args=(["--spy", "x"],))
    thread.start()
    thread.join(5)
    assert frames[0].count('File "') == INNERMOST_FRAMES
    assert "argparse.py" in frames[0]


def test_an_error_knows_whether_it_went_through_the_users_code() -> None:
    with pytest.raises(ValueError, match="no bool") as caught:
        raise ValueError("no bool")
    assert has_user_frames(caught.value)
    assert not has_user_frames(ValueError("never raised"))
