"""Which frames of a traceback are the user's."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from remora.observe.tracebacks import user_traceback


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
