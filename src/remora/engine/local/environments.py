"""Environments of processes: which pieces one needs, having them built once, and swept.

Rules: decides nothing about processes. Building is done by `build_environment` and removing by
`sweep_environments`, in processes of their own; what is built already costs a look at a file.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remora.engine.local.pieces import hold, is_complete, python_of
from remora.errors import EngineError
from remora.home import Home
from remora.options.resources import RuntimeEnv
from remora.options.runtime_env import excludes_of

_log = logging.getLogger("remora.engine")

#: Where the processes beside find the same package as this one.
_ROOT = str(Path(__file__).resolve().parents[3])
#: How often a piece is asked for again that somebody removes as soon as it is built.
_MAX_TRIES = 3


@dataclass(frozen=True)
class Prepared:
    """What a process is started with.

    Attributes:
        python: its interpreter; empty: that of the instance.
        sys_path: in front of everything that the application brings.
        cwd: its working directory; empty: that of the application.
        pieces: the folders that it needs for as long as it lives.
    """

    python: str = ""
    sys_path: tuple[str, ...] = ()
    cwd: str = ""
    pieces: tuple[str, ...] = ()


@dataclass(frozen=True)
class Piece:
    """Something that is built once, and named by what is in it."""

    name: str
    order: dict[str, Any]
    #: For people.
    what: str


def pieces_of(env: RuntimeEnv) -> list[Piece]:
    """Say what an environment is made of: packages, working directory, modules, in this order."""
    pieces = []
    if env.packages:
        count = f"{len(env.packages)} package(s) with {env.installer}"
        pieces.append(Piece(_packages_name(env), _packages_order(env), f"installs {count}"))
    sources = [(env.working_dir, False)] if env.working_dir else []
    sources += [(each, True) for each in env.py_modules]
    known = zip(sources, env.digests, excludes_of(env), strict=True)
    for (path, keeps_name), digest, excludes in known:
        order = {
            "folder": path,
            "excludes": list(excludes),
            "keeps_name": keeps_name,
            "digest": digest,
        }
        kind = f"module-{Path(path).name}" if keeps_name else "folder"
        pieces.append(Piece(f"{kind}-{digest}", order, f"copies {path}"))
    return pieces


def _packages_order(env: RuntimeEnv) -> dict[str, Any]:
    return {
        "packages": list(env.packages),
        "installer": env.installer,
        "options": list(env.install_options),
    }


def _packages_name(env: RuntimeEnv) -> str:
    # The interpreter and what it finds beside are part of it: with another one, it is another.
    known = [_packages_order(env), sys.version, sys.prefix, sys.executable]
    digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()
    return f"packages-{digest[:32]}"


class Environments:
    """The environments of one instance. One event loop."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._folder = home.root / "environments"
        #: By piece; several processes wait for one build.
        self._builds: dict[str, asyncio.Task[None]] = {}
        #: By process: what keeps its pieces until it does so itself.
        self._held: dict[str, list[int]] = {}
        self._sweep: asyncio.Task[None] | None = None
        #: What was said of sweeps already.
        self._told: set[str] = set()

    async def prepare(
        self, process_id: str, env: RuntimeEnv, tell: Callable[[str], None]
    ) -> Prepared:
        """Have everything built that `env` needs, and keep it until `let_go`.

        Args:
            process_id: what it is for.
            env: pinned.
            tell: told what takes time.

        Raises:
            EngineError: something cannot be built; says what, why, and where its output is.
        """
        python, sys_path, cwd = "", [], ""
        held = self._held.setdefault(process_id, [])
        pieces = pieces_of(env)
        for piece in pieces:
            place = self._folder / piece.name
            held.append(await self._held_piece(piece, place, tell))
            if "packages" in piece.order:
                python = str(python_of(place))
            else:
                sys_path.append(str(place))
                cwd = cwd or ("" if piece.order["keeps_name"] else str(place))
        places = tuple(str(self._folder / piece.name) for piece in pieces)
        return Prepared(python, tuple(sys_path), cwd, places)

    async def _held_piece(self, piece: Piece, place: Path, tell: Callable[[str], None]) -> int:
        for _ in range(_MAX_TRIES):
            if (fd := hold(place)) is not None:
                return fd
            if not is_complete(place):
                log = self._log_of(piece)
                tell(f"{piece.what} for it" + (f"; see {log}" if "packages" in piece.order else ""))
            await self._built(piece)
        raise EngineError(f"{place} cannot be used: it is removed whenever it was built")

    def let_go(self, process_id: str) -> None:
        """Keep nothing for a process any more: it does so itself, or is none."""
        for fd in self._held.pop(process_id, ()):
            os.close(fd)

    def _log_of(self, piece: Piece) -> Path:
        return self._home.logs / f"environment-{piece.name}.log"

    async def _built(self, piece: Piece) -> None:
        build = self._builds.get(piece.name)
        if build is None:
            build = asyncio.create_task(self._build(piece), name=f"build {piece.name}")
            self._builds[piece.name] = build
            build.add_done_callback(lambda _: self._builds.pop(piece.name, None))
        # Others may wait for it, or will: one that is not needed now is cheap to keep.
        await asyncio.shield(build)

    async def _build(self, piece: Piece) -> None:
        order = {
            "piece": str(self._folder / piece.name),
            "order": piece.order,
            "log": str(self._log_of(piece)),
            "parent": os.getpid(),
        }
        status, output = await _run("build_environment", order)
        if status:
            lines = output.decode(errors="replace").strip().splitlines()
            why = lines[-1] if lines else f"its builder ended with status {status}"
            raise EngineError(f"its environment could not be built: {why}")

    def sweep(self, needed: Collection[RuntimeEnv]) -> None:
        """Begin to remove what none of these has in it, unless a sweep is under way already.

        Args:
            needed: all environments that something may need, pinned.
        """
        if self._sweep is not None and not self._sweep.done():
            return
        if self._folder.is_dir():
            self._sweep = asyncio.create_task(self._swept(needed), name="sweep environments")

    async def _swept(self, needed: Collection[RuntimeEnv]) -> None:
        order = {
            "folder": str(self._folder),
            "logs": str(self._home.logs),
            "needed": sorted({piece.name for env in needed for piece in pieces_of(env)}),
            "parent": os.getpid(),
        }
        try:
            status, output = await _run("sweep_environments", order)
        except OSError as error:
            _log.debug("Environments could not be swept: %s", error)
            return
        if status:
            self._warn(f"{self._folder} could not be swept: its process ended with status {status}")
            return
        swept = json.loads(output)
        if swept["gone"]:
            _log.info(
                "Removed %d environment(s) that nothing needs, %.0f MiB: %s",
                len(swept["gone"]),
                swept["num_bytes"] / (1 << 20),
                "; ".join(f"{name}: {why}" for name, why in swept["gone"]),
            )
        for left in swept["left"]:
            self._warn(f"An environment that nothing needs cannot be removed: {left}")

    def _warn(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            _log.warning("%s. Delete it by hand if it is large. Said once.", text)

    async def close(self) -> None:
        """End all builds and the sweep; what they have done so far is never used."""
        tasks = [*self._builds.values(), *([self._sweep] if self._sweep is not None else [])]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for process_id in list(self._held):
            self.let_go(process_id)


async def _run(module: str, order: dict[str, Any]) -> tuple[int, bytes]:
    """Run a module beside this one in a process of its own; returns its status and output."""
    boot = (
        f"import sys; sys.path.append({_ROOT!r}); "
        f"from remora.engine.local.{module} import main; main()"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-c",
        boot,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        output, _ = await process.communicate(json.dumps(order).encode())
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    return process.returncode or 0, output
