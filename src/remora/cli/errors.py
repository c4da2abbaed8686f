"""How a command fails: one message for people, an exit status, no traceback of our own."""

from __future__ import annotations

import difflib
import importlib
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

#: The command line itself was wrong; the status that click uses too.
USAGE_STATUS = 2
#: What was asked for failed.
FAILED_STATUS = 1
#: Interrupted before it was done, as shells report a SIGINT.
INTERRUPTED_STATUS = 130

_OUR_CODE = str(Path(__file__).resolve().parent.parent)
_IMPORT_MACHINERY = str(Path(str(importlib.__file__)).parent)


class CommandError(Exception):
    """A command cannot do what was asked.

    Args:
        message: what failed and what to do next.
        status: exit status of the command.
        user_traceback: the traceback of the user's own code, already trimmed to it.
    """

    def __init__(
        self, message: str, *, status: int = FAILED_STATUS, user_traceback: str = ""
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.user_traceback = user_traceback


class UsageError(CommandError):
    """The command line asks for something that cannot be."""

    def __init__(self, message: str) -> None:
        super().__init__(message, status=USAGE_STATUS)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ` Did you mean 'x'?` for the known word nearest to `word`, or nothing. Pure."""
    near = difflib.get_close_matches(word, sorted(known), n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""


def _is_users(filename: str) -> bool:
    return not filename.startswith(("<frozen importlib", _IMPORT_MACHINERY, _OUR_CODE))


def _users_depth(trace: TracebackType | None) -> int | None:
    """How many frames there are up to the last one of the user's; None: all."""
    users = [
        depth
        for depth, (frame, _) in enumerate(traceback.walk_tb(trace), 1)
        if not frame.f_code.co_filename.startswith(_OUR_CODE)
    ]
    return max(users, default=None)


def user_traceback(error: BaseException) -> str:
    """Format the traceback of `error` from the first frame of the user's code to the last.

    The frames around them are ours and the import machinery's: they say nothing about the mistake.
    """
    trace: TracebackType | None = error.__traceback__
    while trace is not None and not _is_users(trace.tb_frame.f_code.co_filename):
        trace = trace.tb_next
    lines = traceback.format_exception(type(error), error, trace, limit=_users_depth(trace))
    # Without any frame of the user's, Python still prints the header of an empty list.
    return "".join(lines).rstrip()
