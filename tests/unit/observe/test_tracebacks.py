"""Which frames of a traceback are the user's."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import re
import sys
import threading
from pathlib import Path
from types import TracebackType

import pytest

from remora.observe.tracebacks import INNERMOST_FRAMES, has_user_frames, user_stack, user_traceback


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


def _fail() -> None:
    raise ValueError("no weights")


async def _fail_in_a_thread() -> None:
    await asyncio.wait_for(asyncio.to_thread(_fail), 5)


async def _be_late() -> None:
    await asyncio.wait_for(asyncio.sleep(10), 0)


def test_event_loops_and_threads_are_left_out_also_between_frames_of_the_user() -> None:
    with pytest.raises(ValueError, match="no weights") as caught:
        asyncio.run(_fail_in_a_thread())
    text = user_traceback(caught.value)
    assert set(re.findall(r'File "([^"]*)"', text)) == {__file__}
    assert text.endswith("ValueError: no weights\n")


def test_that_a_wait_was_cancelled_is_no_news_where_it_was_too_long() -> None:
    with pytest.raises(TimeoutError) as caught:
        asyncio.run(_be_late())
    text = user_traceback(caught.value)
    assert "CancelledError" not in text
    assert set(re.findall(r'File "([^"]*)"', text)) == {__file__}


def test_an_error_of_no_code_of_the_user_is_told_without_frames() -> None:
    class Model:
        def __init__(self, size: int) -> None: ...

    with pytest.raises(TypeError) as caught:
        asyncio.run(asyncio.to_thread(Model))  # type: ignore[call-arg]
    caught.value.__traceback__ = _without_this_file(caught.value.__traceback__)
    assert user_traceback(caught.value).count("\n") == 1


def _without_this_file(traceback: TracebackType | None) -> TracebackType | None:
    while traceback is not None and traceback.tb_frame.f_code.co_filename == __file__:
        traceback = traceback.tb_next
    return traceback
