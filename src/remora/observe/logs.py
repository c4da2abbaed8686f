"""Where the processes of an instance log."""

from __future__ import annotations

import logging
import sys

from remora.home import Home


def configure_logging(home: Home, name: str) -> None:
    """Send the log of this process to its standard error, each line with the process's name.

    Standard error is the terminal of the script that owns the instance, or the instance's log
    file when nobody does.

    Args:
        home: the instance.
        name: whose lines these are.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        logging.Formatter(f"%(asctime)s %(levelname)s {name.replace('%', '%%')}: %(message)s")
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
