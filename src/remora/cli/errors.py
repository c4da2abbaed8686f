"""How a command fails: one message for people, an exit status, no traceback of our own."""

from __future__ import annotations

#: The command line itself was wrong; the status that click uses too.
USAGE_STATUS = 2
#: What was asked for failed.
FAILED_STATUS = 1
#: Interrupted before it was done, as shells report a SIGINT.
INTERRUPTED_STATUS = 130


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
