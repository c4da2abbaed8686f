"""The commands as a user types them: what they print, what they leave, how they end."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from tests.e2e.instances import Command
from tests.e2e.processes import marked
from tests.e2e.waiting import until

from remora.engine.launch import find_owner

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(60)]

Remora = Callable[..., Command]

SERVER = """
import asyncio
import pathlib

import remora as serve


@serve.deployment(graceful_shutdown_timeout_s=30.0)
class Greeter:
    def __init__(self, greeting="hello"):
        self.greeting = greeting

    async def __call__(self, request):
        if request.url.path.endswith("/slow"):
            pathlib.Path("started").touch()
            while not pathlib.Path("go").exists():
                await asyncio.sleep(0.01)
        return self.greeting


@serve.deployment(max_constructor_retry_count=1)
class Broken:
    def __init__(self):
        raise ValueError("weights are missing")

    def __call__(self, request):
        return "never"


app = Greeter.bind()
broken = Broken.bind()


def build(args):
    return Greeter.bind(args["greeting"])
"""


@pytest.fixture(autouse=True)
def server(tmp_path: Path) -> Path:
    """The module that the commands below serve, in the folder that they start in."""
    file = tmp_path / "server.py"
    file.write_text(SERVER)
    return file


def get(url: str) -> str:
    """Ask once and return the body."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=20)
    try:
        connection.request("GET", parts.path or "/")
        response = connection.getresponse()
        assert response.status == 200, response.read()
        return response.read().decode()
    finally:
        connection.close()


def interrupt(command: Command, number: int = signal.SIGINT) -> None:
    """Send a signal as the terminal does: to the command, not to what it started elsewhere."""
    os.killpg(command.process.pid, number)


class SlowRequest:
    """A request that takes until `finish`."""

    def __init__(self, url: str, folder: Path) -> None:
        self._folder = folder
        self.answer = ""
        self._thread = threading.Thread(target=self._ask, args=(f"{url}/slow",))
        self._thread.start()
        until((folder / "started").exists, "the slow request has started")

    def _ask(self, url: str) -> None:
        try:
            self.answer = get(url)
        except (OSError, http.client.HTTPException) as error:
            self.answer = type(error).__name__

    def finish(self) -> str:
        """Let it go on, and return its answer."""
        (self._folder / "go").touch()
        self._thread.join(20)
        assert not self._thread.is_alive()
        return self.answer


def assert_nothing_left(command: Command) -> None:
    until(lambda: not marked(command.mark), "all it started is gone", 5.0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serves_until_interrupted_ends_with_0_and_can_serve_again(
    number: int, remora: Remora
) -> None:
    for _ in range(2):
        command = remora("run", "--port", "0", "server:app")
        assert get(command.wait_url()) == "hello"
        interrupt(command, number)
        assert command.wait() == 0
        assert_nothing_left(command)
        assert "Traceback" not in command.output


def test_an_interrupt_lets_ongoing_requests_finish(remora: Remora, tmp_path: Path) -> None:
    command = remora("run", "--port", "0", "server:app")
    slow = SlowRequest(command.wait_url(), tmp_path)
    interrupt(command)
    command.wait_output("Stopping")
    assert slow.finish() == "hello"
    assert command.wait() == 0


def test_a_second_interrupt_stops_at_once(remora: Remora, tmp_path: Path) -> None:
    command = remora("run", "--port", "0", "server:app")
    slow = SlowRequest(command.wait_url(), tmp_path)
    interrupt(command)
    command.wait_output("Stopping")
    interrupt(command)
    assert command.wait(8.0) == 130
    assert_nothing_left(command)
    assert slow.finish() != "hello"


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


def test_what_is_run_right_after_an_interrupted_run_finds_folder_and_port_free(
    remora: Remora, tmp_path: Path
) -> None:
    port = free_port()
    command = remora("run", "--port", port, "server:app")
    slow = SlowRequest(command.wait_url(), tmp_path)
    interrupt(command)
    command.wait_output("Stopping")
    interrupt(command)
    assert command.wait(8.0) == 130
    assert find_owner(command.home) is None
    again = remora("run", "--port", port, "server:app")
    assert get(again.wait_url()) == "hello"
    interrupt(again, signal.SIGKILL)
    again.process.wait(5.0)
    last = remora("run", "--port", port, "server:app")
    assert get(last.wait_url()) == "hello"
    interrupt(last)
    assert last.wait() == 0
    slow.finish()


def test_an_interrupted_constructor_does_not_keep_the_next_run_waiting(
    remora: Remora, tmp_path: Path
) -> None:
    (tmp_path / "hangs.py").write_text(
        """
import pathlib, time
import remora as serve

@serve.deployment
class Hangs:
    def __init__(self):
        pathlib.Path("constructing").touch()
        time.sleep(60)

app = Hangs.bind()
"""
    )
    port = free_port()
    command = remora("run", "--port", port, "hangs:app")
    until((tmp_path / "constructing").exists, "the constructor has begun")
    interrupt(command)
    assert command.wait(8.0) == 130
    assert find_owner(command.home) is None
    again = remora("run", "--port", port, "server:app")
    assert get(again.wait_url()) == "hello"
    interrupt(again)
    assert again.wait() == 0


def test_an_interrupt_during_a_slow_import_leaves_nothing(remora: Remora, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        "import pathlib, time\npathlib.Path('importing').touch()\ntime.sleep(60)\n"
    )
    command = remora("run", "--port", "0", "slow:app")
    until((tmp_path / "importing").exists, "the import has begun")
    interrupt(command)
    assert command.wait() == 130
    assert_nothing_left(command)
    assert "Traceback" not in command.output


def test_a_failed_deploy_shows_the_users_traceback_once_and_ends_with_1(remora: Remora) -> None:
    command = remora("run", "--port", "0", "server:broken")
    assert command.wait() == 1
    assert command.output.count("ValueError: weights are missing") == 1
    assert command.output.count("Traceback") == 1
    assert "/remora/" not in command.output, command.output
    assert_nothing_left(command)


def test_a_failed_import_shows_the_users_traceback_once_and_ends_with_1(
    remora: Remora, server: Path
) -> None:
    server.write_text("import nowhere_to_be_found\n")
    command = remora("run", "--port", "0", "server:app")
    assert command.wait() == 1
    assert command.output.count("ModuleNotFoundError") == 1
    assert "/remora/" not in command.output, command.output
    assert_nothing_left(command)


def test_a_taken_port_is_said_in_one_sentence(remora: Remora) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = remora("run", "--port", str(port), "server:app")
        assert command.wait() == 1
    assert str(port) in command.output
    assert "Traceback" not in command.output
    assert_nothing_left(command)


def test_what_is_left_running_is_shown_joined_and_shut_down(remora: Remora) -> None:
    first = remora("run", "--port", "0", "--non-blocking", "server:build", "greeting=hi")
    assert first.wait() == 0
    url = first.wait_url()
    assert get(url) == "hi"

    second = remora("run", "-n", "two", "--route-prefix", "/two", "server:app")
    assert get(second.wait_url()) == "hello"
    shown = remora("status", "--json")
    assert shown.wait() == 0
    assert set(json.loads(shown.output)["applications"]) == {"default", "two"}
    interrupt(second)
    assert second.wait() == 0

    # It ran before the second command, so that command ended its own application alone.
    assert get(url) == "hi"
    one = remora("status", "-n", "default")
    assert one.wait() == 0
    assert "Greeter" in one.output
    other = remora("status", "-n", "two")
    assert other.wait() == 1

    assert remora("shutdown", "-y").wait() == 0
    assert_nothing_left(first)
    assert remora("status").wait() == 1


def test_start_returns_when_the_instance_is_up_and_changes_nothing_a_second_time(
    remora: Remora,
) -> None:
    # Two at once, of which one gets the folder.
    both = [remora("start", "--http-port", "0") for _ in range(2)]
    for command in both:
        assert command.wait() == 0, command.output
    assert sum("already" in command.output for command in both) == 1
    assert sum("It serves" in command.output for command in both) == 1
    command = both[0]
    again = remora("start")
    assert again.wait() == 0
    assert "already" in again.output
    shown = remora("status")
    assert shown.wait() == 0
    assert "No application is deployed" in shown.output
    assert remora("shutdown", "-y").wait() == 0
    assert_nothing_left(command)


def test_shutdown_asks_first(remora: Remora) -> None:
    command = remora("start", "--http-port", "0")
    assert command.wait() == 0
    # Nobody answers: standard input is empty.
    assert remora("shutdown").wait() == 1
    assert remora("status").wait() == 0
    assert remora("shutdown", "-y").wait() == 0


def test_an_edit_is_deployed_and_a_broken_one_keeps_the_version_before(
    remora: Remora, server: Path
) -> None:
    command = remora(
        "run",
        "--port",
        "0",
        "--reload",
        "server:app",
        environment={"PYTHONDONTWRITEBYTECODE": ""},
    )
    url = command.wait_url()
    command.wait_output("Watching")

    def answers(text: str) -> None:
        until(lambda: get(url) == text, f"it answers {text!r}", 20.0)

    answers("hello")
    for greeting in ("helga", "helen", "helle"):
        # Of one length and likely in one second: the same to Python's cache of compiled code.
        server.write_text(SERVER.replace('"hello"', f'"{greeting}"'))
        answers(greeting)
    server.write_text(SERVER.replace('"hello"', '"hello again"'))
    answers("hello again")
    server.write_text("import nowhere_to_be_found\n")
    command.wait_output("ModuleNotFoundError")
    command.wait_output("keeps serving")
    assert get(url) == "hello again"
    server.write_text(SERVER.replace("self.greeting = greeting", "raise OSError('no disk')"))
    command.wait_output("OSError: no disk")
    assert get(url) == "hello again"
    server.write_text(SERVER.replace('"hello"', '"hello at last"'))
    answers("hello at last")
    interrupt(command)
    assert command.wait() == 0
    assert_nothing_left(command)


def test_a_shutdown_from_elsewhere_ends_the_command_with_0(remora: Remora) -> None:
    command = remora("run", "--port", "0", "server:app")
    command.wait_url()
    assert remora("shutdown", "-y").wait() == 0
    assert command.wait() == 0
    assert "shut down from elsewhere" in command.output
    assert "starting" not in command.output.partition("is ready")[2]


def test_a_deploy_says_why_it_waits(remora: Remora, tmp_path: Path) -> None:
    (tmp_path / "seats.py").write_text(
        SERVER + "\napp = Greeter.options(ray_actor_options={'resources': {'seat': 1}}).bind()\n"
    )
    first = remora("run", "--port", "0", "--resources", '{"seat": 1}', "seats:app")
    first.wait_url()
    command = remora("run", "-n", "second", "--route-prefix", "/second", "seats:app")
    command.wait_output("seat: 1 needed, 0 free of 1")
    interrupt(command)
    assert command.wait() == 130
    interrupt(first)
    assert first.wait() == 0


def test_an_instance_that_ends_by_itself_ends_the_command_also_while_it_watches_for_edits(
    remora: Remora,
) -> None:
    command = remora("run", "--port", "0", "--reload", "server:app")
    command.wait_url()
    command.wait_output("Watching")
    owner = find_owner(command.home)
    assert owner is not None
    os.kill(owner.pid, signal.SIGKILL)
    assert command.wait() == 1
    assert "was killed" in command.output
    assert "Traceback" not in command.output
    assert_nothing_left(command)
