"""Show users the part of a traceback that is theirs.

Rules: pure, apart from reading source lines for the text.
"""

from __future__ import annotations

import importlib
import re
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import FrameType

_OURS = str(Path(__file__).resolve().parent.parent) + "/"
#: Importing says nothing about a mistake, wherever it stands.
_IMPORTING = ("<frozen importlib", str(Path(str(importlib.__file__)).parent) + "/")

#: The standard library.
_STANDARD = str(Path(traceback.__file__).resolve().parent) + "/"
#: What turns values into messages, and back.
_MESSAGES = ("wire/values.py", "pickling.py", "transport/packing.py", "transport/arena.py")
#: What `faulthandler` writes.
_DUMPED_FRAME = re.compile(r'  File "(.*)", line (?:\d+|\?\?\?) in ')
_DUMPED_THREAD = re.compile(r"(Current thread|Thread) 0x[0-9a-f]+ .*\(most recent call first\):")
#: Shown of a stack in which nothing is the user's.
INNERMOST_FRAMES = 5

#: What runs the user's code and that of everybody else: it says nothing about a mistake, wherever it
#: stands.
_MACHINERY = tuple(
    _STANDARD + name
    for name in ("asyncio/", "concurrent/futures/", "threading.py", "contextlib.py")
)
_MACHINERY_ANYWHERE = ("/anyio/", "uvloop")
#: Parts of file names that stand between us and the user's code on the way in.
_ON_THE_WAY_IN = ("/cloudpickle/", "/starlette/", "/fastapi/")


def user_traceback(exc: BaseException) -> str:
    """Format `exc` as Python does, with only the frames that are the user's.

    Our frames, those of imports and those of what runs code (event loops, threads, executors) go
    wherever they are; those of what leads to the user's code (pickling, ASGI frameworks) go until
    the first frame of the user. A traceback that would lose every frame that way keeps the latter.
    That something was cancelled inside a library is left out as a cause: the error says it.
    """
    shown = traceback.TracebackException.from_exception(exc)
    seen: set[int] = set()
    rest: list[traceback.TracebackException | None] = [shown]
    while rest:
        part = rest.pop()
        if part is None or id(part) in seen:
            continue
        seen.add(id(part))
        part.stack[:] = _only_theirs(part.stack)
        if not part.stack:
            # Leaves the heading out as well: "most recent call last" with no call below it.
            part.stack = None  # type: ignore[assignment]
        part.__cause__ = _worth_telling(part.__cause__)
        part.__context__ = _worth_telling(part.__context__)
        rest += [part.__cause__, part.__context__, *(part.exceptions or ())]
    return "".join(shown.format())


def has_user_frames(exc: BaseException) -> bool:
    """Say whether `exc` went through code of the user's."""
    return any(_is_theirs(frame) for frame in traceback.extract_tb(exc.__traceback__))


def user_stack(frame: FrameType) -> str:
    """Format where a thread is: the user's frames, else the innermost few."""
    stack = traceback.extract_stack(frame)
    if stack and stack[0].filename == "<string>":
        del stack[0]  # where the process was started from
    theirs = [each for each in stack if _is_theirs(each)]
    return "".join(traceback.format_list(theirs or stack[-INNERMOST_FRAMES:]))


def without_our_frames(lines: Iterable[str]) -> list[str]:
    """Leave out of what an interpreter printed as it crashed what is not the user's.

    Pure. Frames of ours and of the standard library go, and headings with nothing left below them,
    empty lines and the list of extension modules.
    """
    kept: list[str] = []
    for line in lines:
        found = _DUMPED_FRAME.match(line)
        if found is not None:
            if found[1] != "<string>" and _is_theirs(traceback.FrameSummary(found[1], None, "")):
                kept.append(line)
            continue
        if kept and _DUMPED_THREAD.match(kept[-1]):
            del kept[-1]
        if line.strip() and not line.startswith("Extension modules: "):
            kept.append(line)
    if kept and _DUMPED_THREAD.match(kept[-1]):
        del kept[-1]
    return kept


def is_in_message(frame: FrameType) -> bool:
    """Say whether a thread opens or packs a message, so that no handler of the user's runs."""
    at: FrameType | None = frame
    while at is not None and not at.f_code.co_filename.startswith(_OURS):
        at = at.f_back
    return at is not None and at.f_code.co_filename[len(_OURS) :] in _MESSAGES


def _is_theirs(frame: traceback.FrameSummary) -> bool:
    name = frame.filename
    # Installed packages may lie below the standard library, and be the user's.
    standard = name.startswith(_STANDARD) and "-packages/" not in name
    return not (
        standard
        or name.startswith((_OURS, *_IMPORTING, "<frozen "))
        or _is_machinery(name)
        or any(part in name for part in _ON_THE_WAY_IN)
    )


def _is_machinery(name: str) -> bool:
    return name.startswith(_MACHINERY) or any(part in name for part in _MACHINERY_ANYWHERE)


def _worth_telling(
    part: traceback.TracebackException | None,
) -> traceback.TracebackException | None:
    if part is None or not part.stack:
        return part
    # By its name: `exc_type` is deprecated from Python 3.13 on, and what follows it is not in 3.11.
    if not next(part.format_exception_only(), "").startswith("asyncio.exceptions.CancelledError"):
        return part
    return part if any(_is_theirs(frame) for frame in part.stack) else None


def _only_theirs(stack: list[traceback.FrameSummary]) -> list[traceback.FrameSummary]:
    kept = [
        frame
        for frame in stack
        if not frame.filename.startswith((_OURS, *_IMPORTING)) and not _is_machinery(frame.filename)
    ]
    for index, frame in enumerate(kept):
        if not any(part in frame.filename for part in _ON_THE_WAY_IN):
            return kept[index:]
    return kept
