"""Pieces of environments: built once, by one, and used only when they are whole."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import shutil
import signal
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
from tests.wheels import make_wheel

from remora.build.pinning import pinned
from remora.engine import contents
from remora.engine.local import build_environment
from remora.engine.local.build_environment import build
from remora.engine.local.environments import Environments, Piece, pieces_of
from remora.engine.local.pieces import is_complete, python_of
from remora.errors import EngineError
from remora.home import Home
from remora.options.resources import RuntimeEnv

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]


def folder_piece(source: Path, **changes: object) -> Piece:
    (piece,) = pieces_of(pinned(RuntimeEnv(working_dir=str(source), **changes)))  # type: ignore[arg-type]
    return piece


def built(source: Path, place: Path) -> Path:
    """Build the copy of a working directory in this process."""
    build(place, folder_piece(source).order, place.with_suffix(".log"))
    return place


def test_a_working_directory_is_a_copy(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "a.py").write_text("1")
    place = built(source, tmp_path / "piece")
    (source / "sub" / "a.py").write_text("2")
    assert (place / "sub" / "a.py").read_text() == "1"
    assert is_complete(place)


@pytest.mark.parametrize("names", [["a.py", "sub/b.py"], ["top/a.py", "top/sub/b.py", "top/top"]])
def test_a_zip_file_is_unpacked_and_its_only_folder_is_not_part_of_it(
    names: list[str], tmp_path: Path
) -> None:
    source = tmp_path / "source.zip"
    with zipfile.ZipFile(source, "w") as packed:
        for name in names:
            packed.writestr(name, name)
    place = built(source, tmp_path / "piece")
    assert (place / "a.py").is_file()
    assert (place / "sub" / "b.py").is_file()


def test_what_is_no_zip_file_says_so(tmp_path: Path) -> None:
    (tmp_path / "source.zip").write_text("no")
    with pytest.raises(EngineError, match="is no zip file"):
        built(tmp_path / "source.zip", tmp_path / "piece")
    assert not (tmp_path / "piece").exists()


def test_half_of_a_piece_is_never_used(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.py").write_text("1")
    # As a builder leaves it that was killed.
    half = tmp_path / "piece"
    half.mkdir()
    (half / "junk.py").write_text("half")
    assert not is_complete(half)
    built(source, half)
    assert [each.name for each in half.iterdir()] == ["a.py"]
    assert is_complete(half)


@pytest.mark.parametrize("is_folder", [True, False])
def test_what_a_user_calls_complete_is_content(is_folder: bool, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    inside = source / "complete" / "a.py" if is_folder else source / "complete"
    inside.parent.mkdir(exist_ok=True)
    inside.write_text("1")
    half = tmp_path / "half"
    shutil.copytree(source, half)
    assert not is_complete(half)
    place = built(source, tmp_path / "piece")
    assert is_complete(place)
    assert (place / inside.relative_to(source)).read_text() == "1"


def test_versions_of_a_module_are_complete_each_for_itself(tmp_path: Path) -> None:
    source = tmp_path / "model.py"
    places = []
    for content in "12":
        source.write_text(content)
        (piece,) = pieces_of(pinned(RuntimeEnv(py_modules=(str(source),))))
        places.append(tmp_path / "environments" / piece.name)
        assert not is_complete(places[-1])
        build(places[-1], piece.order, tmp_path / "log")
    assert [(place / "model.py").read_text() for place in places] == ["1", "2"]


@pytest.mark.parametrize("kind", ["folder", "module", "file", "zip", "zipped module"])
def test_what_has_changed_since_it_was_deployed_is_not_taken(kind: str, tmp_path: Path) -> None:
    source = tmp_path / ("source.zip" if "zip" in kind else "source.py")
    if kind in ("folder", "module"):
        source.mkdir()

    def write(content: str) -> None:
        if "zip" in kind:
            with zipfile.ZipFile(source, "w") as packed:
                # The same content is the same file, whatever time it is.
                packed.writestr(zipfile.ZipInfo("a.py"), content)
        else:
            (source if kind == "file" else source / "a.py").write_text(content)

    write("1")
    is_folder = kind in ("folder", "zip")
    wanted = {"working_dir": str(source)} if is_folder else {"py_modules": (str(source),)}
    (piece,) = pieces_of(pinned(RuntimeEnv(**wanted)))
    write("2")
    place = tmp_path / "piece"
    with pytest.raises(EngineError, match="has changed since it was deployed: deploy again"):
        build(place, piece.order, tmp_path / "log")
    assert not place.exists()
    assert not is_complete(place)
    write("1")
    build(place, piece.order, tmp_path / "log")
    assert is_complete(place)


def test_what_has_grown_too_large_since_then_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    piece = folder_piece(source)
    (source / "a.py").write_text("12")
    monkeypatch.setattr(contents, "MAX_FOLDER_BYTES", 1)
    with pytest.raises(EngineError, match="has changed since it was deployed"):
        build(tmp_path / "piece", piece.order, tmp_path / "log")
    assert not (tmp_path / "piece").exists()


def _build_slowly(source: str, place: str, counter: str) -> None:
    copy = build_environment._copy

    def counted(source: Path, piece: Path, order: dict[str, Any]) -> None:
        with Path(counter).open("a") as file:
            file.write("x")
        copy(source, piece, order)

    build_environment._copy = counted
    built(Path(source), Path(place))


def test_several_builders_build_once(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.py").write_text("1")
    args = (str(source), str(tmp_path / "piece"), str(tmp_path / "counter"))
    spawn = multiprocessing.get_context("spawn")
    builders = [spawn.Process(target=_build_slowly, args=args) for _ in range(3)]
    for each in builders:
        each.start()
    for each in builders:
        each.join(30)
    assert [each.exitcode for each in builders] == [0, 0, 0]
    assert (tmp_path / "counter").read_text() == "x"


def test_packages_are_installed_beside_those_of_the_instance(tmp_path: Path) -> None:
    make_wheel(tmp_path / "wheels", "tinypackage", "1.0", "answer = 42")
    env = RuntimeEnv(
        packages=("tinypackage==1.0",),
        install_options=("--no-index", "--find-links", str(tmp_path / "wheels")),
    )
    (piece,) = pieces_of(env)
    build(tmp_path / "piece", piece.order, tmp_path / "log")
    code = "import tinypackage, msgspec, remora; print(tinypackage.answer, remora.__name__)"
    answer = subprocess.run(
        [str(python_of(tmp_path / "piece")), "-P", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
    )
    assert answer.stdout == "42 remora\n", answer.stderr


def test_what_cannot_be_installed_says_why_and_where_the_output_is(tmp_path: Path) -> None:
    env = RuntimeEnv(packages=("nosuchpackage",), install_options=("--no-index",))
    (piece,) = pieces_of(env)
    with pytest.raises(EngineError, match="pip ended with status 1: ERROR: No matching") as caught:
        build(tmp_path / "piece", piece.order, tmp_path / "log")
    assert str(tmp_path / "log") in str(caught.value)
    assert "nosuchpackage" in (tmp_path / "log").read_text()
    assert not (tmp_path / "piece").exists()


def test_uv_must_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (piece,) = pieces_of(RuntimeEnv(packages=("a",), installer="uv"))
    with pytest.raises(EngineError, match="no command of that name"):
        build(tmp_path / "piece", piece.order, tmp_path / "log")


def test_uv_installs_with_its_own_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uv = tmp_path / "uv"
    uv.write_text('#!/bin/sh\necho "$@" > "$(dirname "$0")/called"\n')
    uv.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    env = RuntimeEnv(packages=("a",), installer="uv", install_options=("--offline",))
    (piece,) = pieces_of(env)
    build(tmp_path / "piece", piece.order, tmp_path / "log")
    words = (tmp_path / "called").read_text().split()
    assert words[:3] == ["pip", "install", "--python"]
    assert words[3] == str(python_of(tmp_path / "piece"))
    assert words[-1] == "--offline"


def test_other_options_are_another_piece() -> None:
    names = {
        pieces_of(env)[0].name
        for env in (
            RuntimeEnv(packages=("a",)),
            RuntimeEnv(packages=("a", "b")),
            RuntimeEnv(packages=("a",), installer="uv"),
            RuntimeEnv(packages=("a",), install_options=("--pre",)),
        )
    }
    assert len(names) == 4


async def test_an_environment_is_prepared_once_for_all_who_want_it(remora_home: Path) -> None:
    home = Home.locate(remora_home)
    home.make()
    source = remora_home / "source"
    source.mkdir()
    (source / "a.py").write_text("1")
    env = pinned(RuntimeEnv(working_dir=str(source), py_modules=(str(source),)))
    environments = Environments(home)
    told: list[str] = []
    first, second = await asyncio.gather(
        environments.prepare("a#1", env, told.append), environments.prepare("a#2", env, told.append)
    )
    assert first == second
    assert first.cwd == first.sys_path[0]
    assert (Path(first.cwd) / "a.py").read_text() == "1"
    # A module keeps the name that it is imported by.
    assert (Path(first.sys_path[1]) / "source" / "a.py").is_file()
    assert set(told) == {f"copies {source} for it"}
    told.clear()
    assert await environments.prepare("a#3", env, told.append) == first
    assert told == []
    await environments.close()


async def test_a_builder_that_is_killed_is_an_error_and_the_next_one_builds(
    remora_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home.locate(remora_home)
    home.make()
    source = remora_home / "source"
    source.mkdir()
    environments = Environments(home)
    piece = folder_piece(source)
    pids: list[int] = []
    spawn = asyncio.create_subprocess_exec

    async def killed_at_once(*args: str, **kwargs: Any) -> asyncio.subprocess.Process:
        made = await spawn(*args, **kwargs)
        if not pids:
            os.kill(made.pid, signal.SIGKILL)
        pids.append(made.pid)
        return made

    monkeypatch.setattr(asyncio, "create_subprocess_exec", killed_at_once)
    with pytest.raises(EngineError, match="its builder ended with status -9"):
        await environments._built(piece)
    await environments._built(piece)
    assert is_complete(remora_home / "environments" / piece.name)
    await environments.close()
