"""Environments of processes: which pieces one needs, and having them built once.

Rules: decides nothing about processes. Building is done by `build_environment`, in processes of
its own; what is built already costs a look at a file.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remora.engine.local.build_environment import is_complete, python_of
from remora.errors import EngineError
from remora.home import Home
from remora.options.resources import RuntimeEnv
from remora.options.runtime_env import excludes_of

#: What a builder runs: it must find the same package as this process.
_BOOT = (
    f"import sys; sys.path.append({str(Path(__file__).resolve().parents[3])!r}); "
    "from remora.engine.local.build_environment import main; main()"
)


@dataclass(frozen=True)
class Prepared:
    """What a process is started with.

    Attributes:
        python: its interpreter; empty: that of the instance.
        sys_path: in front of everything that the application brings.
        cwd: its working directory; empty: that of the application.
    """

    python: str = ""
    sys_path: tuple[str, ...] = ()
    cwd: str = ""


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

    async def prepare(self, env: RuntimeEnv, tell: Callable[[str], None]) -> Prepared:
        """Have everything built that `env` needs.

        Args:
            env: pinned.
            tell: told what takes time.

        Raises:
            EngineError: something cannot be built; says what, why, and where its output is.
        """
        python, sys_path, cwd = "", [], ""
        for piece in pieces_of(env):
            place = self._folder / piece.name
            if not is_complete(place):
                log = self._log_of(piece)
                tell(f"{piece.what} for it" + (f"; see {log}" if "packages" in piece.order else ""))
                await self._built(piece)
            if "packages" in piece.order:
                python = str(python_of(place))
            else:
                sys_path.append(str(place))
                cwd = cwd or ("" if piece.order["keeps_name"] else str(place))
        return Prepared(python, tuple(sys_path), cwd)

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
        builder = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-c",
            _BOOT,
            json.dumps(order),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            output, _ = await builder.communicate()
        except asyncio.CancelledError:
            builder.kill()
            await builder.wait()
            raise
        if builder.returncode:
            lines = output.decode(errors="replace").strip().splitlines()
            why = lines[-1] if lines else f"its builder ended with status {builder.returncode}"
            raise EngineError(f"its environment could not be built: {why}")

    async def close(self) -> None:
        """End all builds; what they have built so far is never used."""
        builds = list(self._builds.values())
        for build in builds:
            build.cancel()
        if builds:
            await asyncio.wait(builds)
