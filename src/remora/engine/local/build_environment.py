"""Builds one piece of an environment, in a process of its own: packages, or the copy of a folder.

Theory of operation: a piece has a name that says what is in it, so equal ones are built once and
never changed. Whoever builds has the lock of the piece alone; the others wait for it and find the
piece built (`pieces.py`). That it is complete is written last: what a builder that was killed left
behind is removed by the next one, or by a sweep. What a copy holds is compared with its name, because
its source may have changed since.

Rules: blocks as long as it likes; nobody else's process does any of this.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from remora.engine import linux
from remora.engine.contents import digest_of, files_of
from remora.engine.local.pieces import complete_file, is_complete, lock, python_of, size_of, venv_of
from remora.engine.local.removal import delete, move_aside
from remora.errors import ConfigError, EngineError


def build(piece: Path, order: dict[str, Any], log: Path) -> None:
    """Build a piece, unless it is there by the time that this process may.

    Args:
        piece: folder to make.
        order: `{"packages": […], "installer": …, "options": […]}`, or
            `{"folder": path, "excludes": […], "keeps_name": bool, "digest": of its content}`.
        log: gets the output of what runs.

    Raises:
        EngineError: it cannot be built; says why, and where the output is.
    """
    piece.parent.mkdir(parents=True, exist_ok=True)
    held = lock(piece, fcntl.LOCK_EX)
    try:
        if not is_complete(piece):
            _build(piece, order, log)
    finally:
        os.close(held)


def _build(piece: Path, order: dict[str, Any], log: Path) -> None:
    try:
        delete(move_aside(piece))
        piece.mkdir()
        if "folder" in order:
            _copy(Path(order["folder"]), piece, order)
        else:
            _install(piece, order, log)
        complete_file(piece).write_text(str(size_of(piece)))
    except OSError as error:
        delete(move_aside(piece))
        raise EngineError(f"{piece} cannot be made: {error}") from None
    except EngineError:
        delete(move_aside(piece))
        raise


# ---------------------------------------------------------------------------------------- packages


def _install(piece: Path, order: dict[str, Any], log: Path) -> None:
    venv = venv_of(piece)
    with log.open("w") as output:
        _run([sys.executable, "-m", "venv", "--without-pip", str(venv)], output, log, "venv")
        python = str(python_of(piece))
        _inherit(python)
        requirements = piece / "requirements.txt"
        requirements.write_text("\n".join([*order["packages"], ""]), encoding="utf-8")
        wanted = ["-r", str(requirements), *order["options"]]
        if order["installer"] == "uv":
            uv = shutil.which("uv")
            if uv is None:
                raise EngineError(
                    "uv is to install packages, and there is no command of that name: install it "
                    "beside the instance, or use pip"
                )
            _run([uv, "pip", "install", "--python", python, *wanted], output, log, "uv")
        else:
            # The one of the instance, which the environment sees like all its packages.
            install = [python, "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
            _run([*install, *wanted], output, log, "pip")


def _inherit(python: str) -> None:
    """Let an environment find the packages of the instance behind its own."""
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    found = subprocess.run([python, "-I", "-c", ask], capture_output=True, text=True, check=True)
    ours = str(Path(__file__).resolve().parents[3])
    parents = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    lines = [f"import sys; sys.path.append({ours!r})"]
    # With their own .pth files: what is installed to be edited is found as well.
    lines += [f"import site; site.addsitedir({path!r})" for path in parents]
    pth = Path(found.stdout.strip()) / "_remora_instance.pth"
    pth.write_text("\n".join([*lines, ""]), encoding="utf-8")


def _run(command: Sequence[str], output: Any, log: Path, what: str) -> None:
    output.write(f"$ {' '.join(command)}\n")
    output.flush()
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=False
    )
    if done.returncode == 0:
        return
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines[1:] if "error" in line.lower()] or lines[-1:]
    raise EngineError(
        f"{what} ended with status {done.returncode}: {errors[-1][:300]}. All of its output is in "
        f"{log}"
    )


# ----------------------------------------------------------------------------------------- folders


def _copy(source: Path, piece: Path, order: dict[str, Any]) -> None:
    if not source.exists():
        raise EngineError(f"{source} is not there any more: deploy again")
    if source.suffix in (".zip", ".whl"):
        try:
            with zipfile.ZipFile(source) as packed:
                packed.extractall(piece)
        except zipfile.BadZipFile as error:
            raise EngineError(f"{source} is no zip file: {error}") from None
        _require_unchanged(source, source, order)
        if not order["keeps_name"]:
            _unwrap(piece)
        return
    target = piece / source.name if order["keeps_name"] and source.is_dir() else piece
    for name, file in files_of(str(source), tuple(order["excludes"])):
        place = target / name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, place)
    _require_unchanged(source, target if source.is_dir() else target / source.name, order)


def _require_unchanged(source: Path, content: Path, order: dict[str, Any]) -> None:
    """Refuse a piece whose name says something else than what is in it."""
    try:
        found = digest_of(str(content), tuple(order["excludes"]))
    except ConfigError:
        # Too large: it was not when it was deployed.
        found = ""
    if found != order["digest"]:
        raise EngineError(f"{source} has changed since it was deployed: deploy again")


def _unwrap(piece: Path) -> None:
    """Take the content out of a folder that is all there is, as many tools pack it."""
    inside = list(piece.iterdir())
    if len(inside) != 1 or not inside[0].is_dir():
        return
    # Moved aside first: something in it may have its name.
    aside = inside[0].rename(piece / f".{inside[0].name}.unpacked")
    for each in aside.iterdir():
        each.rename(piece / each.name)
    aside.rmdir()


def main() -> None:
    """Build what standard input says; what goes wrong is the last line of the output."""
    linux.die_with_parent()
    order = json.load(sys.stdin)
    if os.getppid() != order["parent"]:
        sys.exit(1)
    try:
        build(Path(order["piece"]), order["order"], Path(order["log"]))
    except EngineError as error:
        print(error)  # noqa: T201 - for the process that waits
        sys.exit(1)
