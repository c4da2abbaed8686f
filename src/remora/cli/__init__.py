"""The command line.

Rules: commands ask the public client and print; they decide nothing about serving. `main` only
declares commands and imports what a command needs inside of it, so that each starts quickly.
Results go to stdout, everything about the way there to stderr. Exit status: 0 done, 1 it failed,
2 the command line itself was wrong, 130 interrupted before it was done.
"""

from __future__ import annotations

import signal
import sys

#: How `sys.argv[0]` ends in a process that is a command, and not a program that imports one.
_COMMANDS = ("/remora", "/remora/__main__.py")

if sys.argv[0].endswith(_COMMANDS) and signal.getsignal(2) is signal.default_int_handler:
    # Ctrl-C while a command still imports ends it without a traceback; `main` takes over from here.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
