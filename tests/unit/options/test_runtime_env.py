"""`runtime_env`: what is read, what is refused, and what is known of folders and files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remora.errors import ConfigError, NotSupportedYetError
from remora.options import runtime_env
from remora.options.resources import RuntimeEnv
from remora.options.runtime_env import digest_of, pinned, read_runtime_env


def read(**given: Any) -> RuntimeEnv:
    found = read_runtime_env("runtime_env", given)["runtime_env"]
    assert isinstance(found, RuntimeEnv)
    return found


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, RuntimeEnv()),
        ({"env_vars": {"A": "1"}}, RuntimeEnv()),
        ({"working_dir": "x"}, RuntimeEnv(working_dir="x")),
        ({"working_dir": Path("x")}, RuntimeEnv(working_dir="x")),
        ({"working_dir": "local:///x"}, RuntimeEnv(working_dir="/x")),
        ({"py_modules": ["a", "b.whl"]}, RuntimeEnv(py_modules=("a", "b.whl"))),
        ({"excludes": ["*.bin"]}, RuntimeEnv(excludes=("*.bin",))),
        ({"pip": ["a", "b==1"]}, RuntimeEnv(packages=("a", "b==1"))),
        ({"uv": ["a"]}, RuntimeEnv(packages=("a",), installer="uv")),
        ({"pip": "req.txt"}, RuntimeEnv(requirements_file="req.txt")),
        (
            {"pip": {"packages": ["a"], "pip_check": False, "pip_install_options": ["--no-deps"]}},
            RuntimeEnv(packages=("a",), install_options=("--no-deps",)),
        ),
        (
            {"uv": {"packages": "req.txt", "uv_pip_install_options": ["--offline"]}},
            RuntimeEnv(requirements_file="req.txt", installer="uv", install_options=("--offline",)),
        ),
    ],
)
def test_reads_what_ray_users_write(given: dict[str, Any], expected: RuntimeEnv) -> None:
    assert read(**given) == expected


def test_a_module_stands_for_its_folder_or_file() -> None:
    assert read(py_modules=[runtime_env]).py_modules == (runtime_env.__file__,)
    folder = Path(runtime_env.__file__).parent.parent
    assert read(py_modules=[__import__("remora")]).py_modules == (str(folder),)


@pytest.mark.parametrize(
    "given",
    [
        {"working_dirs": "x"},
        {"working_dir": 1},
        {"py_modules": "x"},
        {"py_modules": [1]},
        {"pip": []},
        {"pip": ""},
        {"pip": 1},
        {"pip": [""]},
        {"pip": {"package": ["a"]}},
        {"pip": {"packages": ["a"], "pip_install_options": "--no-deps"}},
        {"pip": ["a"], "uv": ["a"]},
        {"env_vars": {"A": 1}},
    ],
)
def test_refuses_what_cannot_be_right(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        read(**given)
    assert not isinstance(caught.value, NotSupportedYetError)


@pytest.mark.parametrize(
    "given",
    [
        {"conda": "env"},
        {"image_uri": "x"},
        {"container": {}},
        {"working_dir": "s3://bucket/x.zip"},
        {"py_modules": ["https://example.org/x.zip"]},
        {"pip": {"packages": ["a"], "pip_version": "==23"}},
        {"pip": {"packages": ["a"], "pip_check": True}},
    ],
)
def test_says_what_only_ray_has(given: dict[str, Any]) -> None:
    with pytest.raises(NotSupportedYetError):
        read(**given)


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
    monkeypatch.setattr(runtime_env, "MAX_FOLDER_BYTES", 1 << 20)
    (tmp_path / "data.bin").write_bytes(bytes((1 << 20) + 1))
    with pytest.raises(ConfigError, match="over 1 MiB"):
        pinned(read(working_dir=str(tmp_path)))
    assert pinned(read(working_dir=str(tmp_path), excludes=["*.bin"])).digests


files = st.dictionaries(
    st.sampled_from(["a.py", "b/c.py", "b/d/e.txt", "f.sh"]), st.binary(max_size=4), max_size=4
)


def write(folder: Path, content: dict[str, bytes]) -> None:
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


@settings(max_examples=40, deadline=None)
@given(files, files)
def test_digests_are_equal_when_the_content_is(
    tmp_path_factory: pytest.TempPathFactory, one: dict[str, bytes], two: dict[str, bytes]
) -> None:
    first, second = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    write(first, one)
    write(second, two)
    assert (digest_of(str(first), ()) == digest_of(str(second), ())) == (one == two)


def test_what_tools_leave_behind_does_not_count(tmp_path: Path) -> None:
    write(tmp_path, {"a.py": b"1"})
    before = digest_of(str(tmp_path), ("data",))
    write(tmp_path, {"__pycache__/a.pyc": b"x", ".git/HEAD": b"x", "data/large": b"x"})
    os.mkfifo(tmp_path / "pipe")
    assert digest_of(str(tmp_path), ("data",)) == before
    (tmp_path / "a.py").chmod(0o755)
    assert digest_of(str(tmp_path), ("data",)) != before
