"""`remora run --reload`: notices edits and imports the user's code afresh.

Rules: watches files and forgets modules; deploying is the caller's.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import os
import sys
import sysconfig
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from pathlib import Path

#: Folders inside the watched one whose files are not the user's code.
_NOT_CODE = ("site-packages", "dist-packages")


def modules_below(folder: Path) -> list[str]:
    """Return the imported modules whose files lie below `folder`.

    Installed packages are left out, also those of a virtual environment inside of `folder`:
    importing them twice in one process breaks many of them.
    """
    standard = Path(sysconfig.get_path("stdlib"))
    found = []
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if not file or name == "__main__" or name.partition(".")[0] == "remora":
            continue
        path = Path(file)
        if not path.is_relative_to(folder) or path.is_relative_to(standard):
            continue
        if not any(part in _NOT_CODE for part in path.parts):
            found.append(name)
    return found


def forget_modules(folder: Path, edited: Iterable[Path] = ()) -> None:
    """Make the next import of anything below `folder` read its file again.

    Of `edited` files the compiled form is removed as well: Python knows it by the size of the
    source and its time in whole seconds, which two quick edits may share.
    """
    for name in modules_below(folder):
        del sys.modules[name]
    for file in edited:
        for optimization in ("", 1, 2):
            compiled = importlib.util.cache_from_source(str(file), optimization=optimization)
            Path(compiled).unlink(missing_ok=True)
    importlib.invalidate_caches()


def keep_no_bytecode() -> None:
    """Let neither this process nor those that it starts write the compiled form of modules.

    One that imports while a file is edited could save what was in it before.
    """
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"


async def edits(folder: Path) -> AsyncGenerator[list[str], None]:
    """Yield the names of changed Python files, relative to `folder`; first none, once it watches.

    Edits that come close together, as editors make them, are one.
    """
    from watchfiles import PythonFilter, awatch

    async with aclosing(awatch(folder, watch_filter=PythonFilter())) as watching:
        # Its first step sets the watch up: no edit after the first `yield` is missed.
        next_change = asyncio.ensure_future(anext(watching))
        try:
            await asyncio.sleep(0)
            yield []
            while True:
                changes = await next_change
                yield sorted({str(Path(path).relative_to(folder)) for _, path in changes})
                next_change = asyncio.ensure_future(anext(watching))
        finally:
            next_change.cancel()
            await asyncio.wait((next_change,))
