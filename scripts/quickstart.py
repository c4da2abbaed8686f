"""Serve the quickstart, ask it one question, and show the question and the answer.

`make run` is this script. It uses the same command that a user types; Ctrl-C ends both.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

FOLDER = Path(__file__).resolve().parent.parent / "examples" / "quickstart"
TARGET = "serve:app"
PORT = 8000
#: Seconds. A first start compiles bytecode; a machine under load takes several.
START_LIMIT_S = 60.0


def port_is_taken() -> bool:
    """Say whether somebody else answers on the port already."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", PORT)) == 0


def wait_for_answer(url: str, server: subprocess.Popen[bytes]) -> str | None:
    """Ask until the application answers; None when the server ended before it did."""
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5) as response:
                return str(response.read().decode())
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.05)
    return None


def main() -> int:
    """Serve, ask, wait for Ctrl-C."""
    if port_is_taken():
        print(
            f"Port {PORT} is in use, by another instance or another program. "
            "`.venv/bin/remora shutdown -y` ends an instance.",
            file=sys.stderr,
        )
        return 1
    command = [str(Path(sys.executable).parent / "remora"), "run", "-d", str(FOLDER), TARGET]
    server = subprocess.Popen(command)
    # Ctrl-C reaches both processes; the server decides when it is done, and this one waits for it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, _: server.send_signal(number))
    url = f"http://127.0.0.1:{PORT}/"
    answer = wait_for_answer(url, server)
    if answer is not None:
        print(f"\n  $ curl {url}\n  {answer}\n\nTry it at {url}docs. Ctrl-C ends it.", flush=True)
    return server.wait()


if __name__ == "__main__":
    sys.exit(main())
