"""Config files as an operator uses them: deploy, look, change, take away."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from tests.e2e.instances import Command, Instance
from tests.e2e.test_command_line import get, interrupt
from tests.e2e.waiting import until

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(60)]

SERVER = """
import remora as serve


@serve.deployment
class Greeter:
    def __init__(self, greeting="hello"):
        self.greeting = greeting

    def reconfigure(self, config):
        self.greeting = config

    def __call__(self, request):
        return self.greeting


app = Greeter.bind()


def build(args):
    return Greeter.bind(args["greeting"])


def fail(args):
    raise ValueError("no weights")
"""

Remora = Callable[..., Command]


@pytest.fixture(autouse=True)
def server(tmp_path: Path) -> Path:
    file = tmp_path / "server.py"
    file.write_text(SERVER)
    return file


class Operator:
    """Somebody at a shell, with one config file."""

    def __init__(self, remora: Remora, folder: Path, instance: Instance) -> None:
        self._remora = remora
        self._file = folder / "serve.yaml"
        self._home = instance.home.root
        self.url = instance.url

    def __call__(self, *words: str, status: int = 0) -> str:
        command = self._remora(*words, home=self._home)
        ended = command.wait(40)
        assert ended == status, command.output
        return command.output

    def write(self, *applications: dict[str, object]) -> None:
        self._file.write_text(yaml.safe_dump({"applications": list(applications)}))

    def deploy(self, *applications: dict[str, object], status: int = 0) -> str:
        self.write(*applications)
        return self("deploy", "serve.yaml", status=status)

    def saved(self, *words: str) -> str:
        """Write what a command prints into a file beside that of the operator."""
        file = self._file.with_name("saved.yaml")
        file.write_text(self(*words))
        return file.name

    def pids(self, name: str) -> set[int]:
        found = json.loads(self("status", "--json"))["applications"][name]
        return {
            replica["pid"]
            for deployment in found["deployments"].values()
            for replica in deployment["replicas"]
            if replica["state"] == "RUNNING"
        }


@pytest.fixture
def operator(remora: Remora, tmp_path: Path, shared: Instance) -> Operator:
    return Operator(remora, tmp_path, shared)


ONE: dict[str, object] = {"name": "one", "route_prefix": "/one", "import_path": "server:app"}
TWO: dict[str, object] = {
    "name": "two",
    "route_prefix": "/two",
    "import_path": "server:build",
    "args": {"greeting": "hi"},
}


def test_a_config_is_deployed_changed_and_taken_away(operator: Operator) -> None:
    output = operator.deploy(ONE, TWO)
    assert f"Application 'one' is ready at {operator.url}/one" in output
    assert get(f"{operator.url}/one") == "hello"
    assert get(f"{operator.url}/two") == "hi"
    pids = operator.pids("one")

    # Again the same: no replica is new.
    operator.deploy(ONE, TWO)
    assert operator.pids("one") == pids

    # Only an option: reconfigured in place.
    light = {**ONE, "deployments": [{"name": "Greeter", "user_config": "changed"}]}
    assert "Nothing would change." in operator("plan", "serve.yaml")
    operator.write(light, TWO)
    assert "Greeter: reconfigure in place (user_config)" in operator("plan", "serve.yaml")
    assert get(f"{operator.url}/one") == "hello"
    operator.deploy(light, TWO)
    assert operator.pids("one") == pids
    assert get(f"{operator.url}/one") == "changed"

    # Other arguments: another version; what is not declared any more goes.
    operator.deploy({**TWO, "args": {"greeting": "good day"}})
    assert get(f"{operator.url}/two") == "good day"
    assert '"one"' not in operator("status", "--json") or "DELETING" in operator("status")

    operator.deploy(ONE, TWO)
    assert "Nothing would change." in operator("plan", operator.saved("config"))
    operator.deploy({**TWO, "args": {"greeting": "good day"}})
    assert yaml.safe_load(operator("config")) == {**TWO, "args": {"greeting": "good day"}}
    operator("delete", "two")
    assert "There is no application 'two'" in operator("delete", "two", status=1)
    assert "No configuration was found." in operator("config")


def test_an_edited_module_is_a_new_version(operator: Operator, server: Path) -> None:
    operator.deploy(ONE)
    server.write_text(SERVER.replace('"hello"', '"edited"'))
    operator.deploy(ONE)
    assert get(f"{operator.url}/one") == "edited"
    operator.deploy()


def test_a_version_that_fails_is_rolled_back_and_the_deploy_says_so(
    operator: Operator, server: Path
) -> None:
    back = {**ONE, "deployments": [{"name": "Greeter", "rollback": "auto"}]}
    operator.deploy(back)
    pids = operator.pids("one")
    server.write_text(SERVER.replace("self.greeting = greeting", "raise ValueError('no weights')"))
    output = operator.deploy(back, status=1)
    assert "was rolled back to what ran before" in output
    assert "ValueError: no weights" in output
    assert "is ready" not in output
    assert operator.pids("one") == pids
    assert get(f"{operator.url}/one") == "hello"
    assert "was rolled back" in operator("status")
    # The same config again is another try, and this time its module is well.
    server.write_text(SERVER.replace('"hello"', '"mended"'))
    operator.deploy(back)
    assert get(f"{operator.url}/one") == "mended"
    assert "rolled back" not in operator("status")
    operator.deploy()


def test_a_builder_that_raises_is_shown_and_the_old_version_serves(operator: Operator) -> None:
    operator.deploy(ONE)
    output = operator.deploy({**ONE, "import_path": "server:fail"}, status=1)
    assert "ValueError: no weights" in output
    assert "1 of 1 applications could not be deployed: one." in output
    assert "DEPLOY_FAILED" in operator("status")
    assert get(f"{operator.url}/one") == "hello"
    output = operator.deploy({**ONE, "import_path": "gone:app"}, status=1)
    assert "There is no module 'gone'" in output
    assert get(f"{operator.url}/one") == "hello"
    operator.deploy()


def test_a_module_that_is_gone_harms_nothing_that_runs(operator: Operator, server: Path) -> None:
    operator.deploy(ONE)
    server.unlink()
    output = operator.deploy(ONE, status=1)
    assert "There is no module 'server'" in output
    assert get(f"{operator.url}/one") == "hello"
    operator.deploy()


def test_what_is_wrong_with_a_file_is_told_before_anything_is_deployed(
    operator: Operator, tmp_path: Path
) -> None:
    (tmp_path / "serve.yaml").write_text("applications:\n- import_path: server:app\n  nmae: x\n")
    output = operator("deploy", "serve.yaml", status=1)
    assert "serve.yaml:3: applications[0].nmae: no such key. Did you mean 'name'?" in output
    (tmp_path / "serve.yaml").write_text("applications: []\n")
    output = operator("deploy", "serve.yaml", "a=b", status=2)
    assert "cannot go with a config file" in output


def test_an_import_path_is_deployed_without_a_file(operator: Operator) -> None:
    operator("deploy", "server:build", "greeting=hey", "-n", "path", "--route-prefix", "/path")
    assert get(f"{operator.url}/path") == "hey"
    env = json.dumps({"env_vars": {"A": "b"}})
    operator("deploy", "server:app", "--runtime-env-json", env, "--route-prefix", "/path")
    assert yaml.safe_load(operator("config"))["runtime_env"] == {"env_vars": {"A": "b"}}
    operator.deploy()


SLOW = """
import pathlib
import time

pathlib.Path("importing").touch()
while not pathlib.Path("go").exists():
    time.sleep(0.01)
"""


def test_of_two_deploys_at_once_the_later_wins_and_the_earlier_is_told(
    operator: Operator, remora: Remora, shared: Instance, tmp_path: Path
) -> None:
    (tmp_path / "slow_server.py").write_text(SLOW + SERVER)
    operator.write({**ONE, "import_path": "slow_server:app"})
    earlier = remora("deploy", "serve.yaml", home=shared.home.root)
    until((tmp_path / "importing").exists, "the slow import has begun", 20.0)
    operator.deploy({**ONE, "name": "later"})
    assert earlier.wait(20.0) == 1, earlier.output
    assert "was deleted while release" in earlier.output
    assert get(f"{operator.url}/one") == "hello"
    operator.deploy()


def test_a_shutdown_ends_a_deploy_that_is_under_way(remora: Remora, tmp_path: Path) -> None:
    (tmp_path / "slow_server.py").write_text(SLOW + SERVER)
    config = {"applications": [{**ONE, "import_path": "slow_server:app"}]}
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(config))
    assert remora("start", "--http-port", "0", "--admin-port", "0").wait() == 0
    deploy = remora("deploy", "serve.yaml")
    until((tmp_path / "importing").exists, "the slow import has begun", 20.0)
    assert remora("shutdown", "-y").wait() == 0
    assert deploy.wait() == 1
    assert "was deleted while" in deploy.output or "has ended" in deploy.output


def test_no_wait_returns_when_it_is_accepted(operator: Operator) -> None:
    operator.write(ONE)
    assert "is accepted" in operator("deploy", "serve.yaml", "--no-wait")
    operator.deploy()


def test_without_an_instance_deploy_says_how_to_start_one(remora: Remora, tmp_path: Path) -> None:
    (tmp_path / "serve.yaml").write_text("applications: []\n")
    command = remora("deploy", "serve.yaml")
    assert command.wait() == 1
    assert "No instance runs" in command.output


def test_what_belongs_to_the_instance_is_noted(operator: Operator, tmp_path: Path) -> None:
    config = {"applications": [], "http_options": {"port": 1}, "proxy_location": "Disabled"}
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(config))
    output = operator("deploy", "serve.yaml")
    assert "http_options['port'] has no effect on the instance that runs" in output
    assert "proxy_location has no effect" in output


def test_the_schema_is_json(operator: Operator) -> None:
    assert json.loads(operator("schema"))["required"] == ["applications"]


def test_releases_are_listed_compared_and_gone_back_to(operator: Operator) -> None:
    operator.deploy({**TWO, "args": {"greeting": "first"}})
    operator.deploy({**TWO, "args": {"greeting": "second"}})
    shown = operator("history").splitlines()
    assert "two (serve.yaml)  <- declared now" in shown[0]
    assert "-    greeting: first" in operator("diff")
    assert "+    greeting: second" in operator("diff")
    assert "say the same" in operator("diff", shown[0].split()[0], "serve.yaml")
    assert "is in effect" in operator("rollback")
    assert get(f"{operator.url}/two") == "first"
    assert f"(rollback to {shown[1].split()[0]})" in operator("history", "-n", "1")
    assert "There is no release 9999" in operator("rollback", "9999", status=1)
    operator.deploy()


@pytest.mark.local_only("Ray is given no folders of one node")
def test_a_folder_of_its_own_is_served_as_it_was_and_comes_back(
    operator: Operator, server: Path
) -> None:
    code = server.parent / "code"
    code.mkdir()
    module = code / "own_server.py"
    module.write_text(SERVER.replace('"hello"', '"first"'))
    own = {**ONE, "import_path": "own_server:app", "runtime_env": {"working_dir": "code"}}
    operator.deploy(own)
    module.write_text(SERVER.replace('"hello"', '"second"'))
    # Another replica is made of what was deployed.
    operator.deploy({**own, "import_path": "nowhere:app"}, status=1)
    assert get(f"{operator.url}/one") == "first"
    operator.deploy(own)
    assert get(f"{operator.url}/one") == "second"
    first = operator("history").splitlines()[2].split()[0]
    operator("rollback", first)
    assert get(f"{operator.url}/one") == "first"
    output = operator.deploy({**own, "import_path": "own_server:fail"}, status=1)
    assert str(module) in output
    operator.deploy()


def test_run_serves_a_config_until_interrupted(remora: Remora, tmp_path: Path) -> None:
    config = {"http_options": {"port": 0}, "applications": [ONE, TWO]}
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(config))
    command = remora("run", "serve.yaml")
    command.wait_output("Application 'two' is ready at http://")
    url = command.wait_url().removesuffix("/one")
    assert get(f"{url}/two") == "hi"
    interrupt(command)
    assert command.wait() == 0
