from __future__ import annotations

import asyncio
import importlib
import os
import sys
from contextlib import aclosing
from pathlib import Path

import pytest

from remora.cli.reload import edits, forget_modules, modules_below


def test_an_edited_module_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "edited_module_a.py"
    file.write_text("VALUE = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert importlib.import_module("edited_module_a").VALUE == 1
    file.write_text("VALUE = 'another length'\n")
    forget_modules(tmp_path)
    assert importlib.import_module("edited_module_a").VALUE == "another length"
    forget_modules(tmp_path)
    assert "edited_module_a" not in sys.modules


def test_two_edits_of_one_length_in_one_second_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    monkeypatch.setattr(sys, "pycache_prefix", None)
    monkeypatch.syspath_prepend(str(tmp_path))
    file = tmp_path / "edited_module_b.py"
    for value in (1, 2, 3):
        file.write_text(f"VALUE = {value}\n")
        os.utime(file, (1e9, 1e9))
        forget_modules(tmp_path, [file, tmp_path / "deleted.py"])
        found = importlib.import_module("edited_module_b").VALUE
        assert found == value
        assert list((tmp_path / "__pycache__").glob("edited_module_b.*"))
    forget_modules(tmp_path)


def test_forgets_nothing_outside_of_the_folder(tmp_path: Path) -> None:
    assert modules_below(tmp_path) == []


def test_never_forgets_installed_packages_nor_remora() -> None:
    everywhere = modules_below(Path("/"))
    assert not any(name.partition(".")[0] in {"remora", "pytest", "asyncio"} for name in everywhere)


@pytest.mark.slow
async def test_yields_the_files_that_changed(tmp_path: Path) -> None:
    async with asyncio.timeout(10), aclosing(edits(tmp_path)) as changes:
        assert await anext(changes) == []
        # It watches now: an edit need not be made twice.
        (tmp_path / "notes.txt").write_text("no code")
        (tmp_path / "server.py").write_text("VALUE = 1\n")
        assert await anext(changes) == ["server.py"]
