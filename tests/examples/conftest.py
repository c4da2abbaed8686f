"""Run an example as its README says: `remora run` in its folder, a client beside it, Ctrl-C."""

from __future__ import annotations

import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests import engines

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

#: Seconds. A model that trains or loads at start, on a machine that runs other tests as well.
START_LIMIT_S = 60.0
STOP_LIMIT_S = 20.0

#: Other lines name other addresses, that of the REST API where its port was taken.
_URL = re.compile(r"ready at (http://127\.0\.0\.1:\d+)")


@dataclass
class Example:
    """A served example.

    Attributes:
        output: every line that `remora run` printed so far.
    """

    folder: Path
    server: subprocess.Popen[str]
    url: str = ""
    output: list[str] = field(default_factory=list)

    def client(self) -> str:
        """Run the example's client against it and return what it printed."""
        done = subprocess.run(
            [sys.executable, "client.py", self.url],
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=START_LIMIT_S,
            check=False,
        )
        assert done.returncode == 0, f"{done.stderr}\nserver:\n{''.join(self.output)}"
        return done.stdout

    def expected(self) -> str:
        """The output that the README promises."""
        found = re.search(r"```text\n(.*?)```", (self.folder / "README.md").read_text(), re.S)
        assert found, f"{self.folder.name}/README.md shows no output"
        return found[1]


def wait_for_url(example: Example, lines: queue.Queue[str | None]) -> str:
    """Read what the server prints until it says where it serves."""
    deadline = time.monotonic() + engines.patient(START_LIMIT_S)
    while True:
        try:
            line = lines.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            line = None
        if line is None:
            pytest.fail(f"{example.folder.name} did not come up:\n{''.join(example.output)}")
        if found := _URL.search(line):
            return found[1]


def pump(example: Example, lines: queue.Queue[str | None]) -> None:
    """Keep the pipe empty for as long as the server runs."""
    assert example.server.stdout is not None
    for line in example.server.stdout:
        example.output.append(line)
        lines.put(line)
    lines.put(None)


@contextmanager
def served(home: Path, folder: Path, *words: str) -> Iterator[Example]:
    """Serve the example in `folder` with `remora run <words>`; Ctrl-C it at the end."""
    server = subprocess.Popen(
        [str(Path(sys.executable).parent / "remora"), "run", "--port", "0", *words],
        cwd=folder,
        env={**os.environ, "REMORA_HOME": str(home), "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A group of its own, so that Ctrl-C below reaches it and not the tests.
        start_new_session=True,
    )
    example = Example(folder, server)
    lines: queue.Queue[str | None] = queue.Queue()
    reader = threading.Thread(target=pump, args=(example, lines), name="example-output")
    reader.start()
    try:
        example.url = wait_for_url(example, lines)
        yield example
        os.killpg(server.pid, signal.SIGINT)
        status = server.wait(engines.patient(STOP_LIMIT_S))
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
        reader.join(STOP_LIMIT_S)
        assert server.stdout is not None
        server.stdout.close()
    text = "".join(example.output)
    assert status == 0, text
    assert "Traceback" not in text, text


Serve = Callable[..., AbstractContextManager[Example]]


@pytest.fixture
def serve_example(remora_home: Path) -> Serve:
    """Return `served` for a folder of examples/, in this test's own state folder."""

    def serve(name: str, *words: str) -> AbstractContextManager[Example]:
        return served(remora_home, EXAMPLES / name, *words)

    return serve
