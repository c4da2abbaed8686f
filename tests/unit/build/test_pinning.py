"""Environments are pinned when an application is built: what is read, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from remora.build.pinning import pinned
from remora.engine import contents
from remora.errors import ConfigError
from remora.options.resources import RuntimeEnv
from remora.options.runtime_env import read_runtime_env


def read(**given: Any) -> RuntimeEnv:
    found = read_runtime_env("runtime_env", given)["runtime_env"]
    assert isinstance(found, RuntimeEnv)
    return found


def test_pinning_reads_files_and_makes_paths_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "a.txt").write_text("a")
    (tmp_path / "b.py").write_text("b = 1")
    (tmp_path / "one.whl").write_bytes(b"wheel")
    (tmp_path / "req.txt").write_text("# first\nx==1  # why\n\n./one.whl\n--no-deps\n")
    env = pinned(read(working_dir="work", py_modules=["b.py"], pip="req.txt"))
    assert env.working_dir == str(tmp_path / "work")
    assert env.py_modules == (str(tmp_path / "b.py"),)
    assert env.packages[0] == "x==1"
    assert env.packages[1].startswith(f"file://{tmp_path}/one.whl#sha256=")
    assert env.packages[2] == "--no-deps"
    assert len(env.digests) == 2
    assert pinned(env) == env


@pytest.mark.parametrize(
    "given", [{"working_dir": "nowhere"}, {"py_modules": ["a.txt"]}, {"pip": "nowhere.txt"}]
)
def test_what_is_not_there_is_refused_when_the_application_is_built(
    given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(ConfigError, match=r"nowhere|a\.txt"):
        pinned(read(**given))


def test_a_folder_that_is_too_large_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contents, "MAX_FOLDER_BYTES", 1 << 20)
    (tmp_path / "data.bin").write_bytes(bytes((1 << 20) + 1))
    with pytest.raises(ConfigError, match="over 1 MiB"):
        pinned(read(working_dir=str(tmp_path)))
    assert pinned(read(working_dir=str(tmp_path), excludes=["*.bin"])).digests
