from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from remora.cli.errors import CommandError
from remora.cli.main import cli

APP = """
import remora as serve

@serve.deployment(autoscaling_config={"max_replicas": 4, "upscale_delay_s": 5})
class Model:
    def __init__(self, front):
        pass

@serve.deployment(num_replicas=2)
class Front:
    pass

@serve.deployment(autoscaling_config={"max_replicas": 9})
class Deep:
    pass

app = Model.bind([Front.bind(), Deep.bind()])
"""


def ran(*words: str) -> Any:
    return CliRunner().invoke(cli, ["simulate", *words], catch_exceptions=False)


def figures(*words: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(ran(*words, "--json").output)
    return found


def test_tries_settings_without_an_application() -> None:
    (found,) = figures("--load", "30@5,60@60", "--set", "upscale_delay_s=5", "--service", "0.2")
    assert found["deployment"] == "model"
    assert found["peak_replicas"] > 3
    (less,) = figures("--load", "30@5,60@60", "--set", "max_replicas=2", "--service", "0.2")
    assert less["requests"] == found["requests"]
    assert less["peak_replicas"] <= 2


@pytest.fixture
def folder(tmp_path: Path) -> str:
    (tmp_path / "simulated_app.py").write_text(APP)
    return str(tmp_path)


def test_tries_the_options_of_an_application(folder: str, tmp_path: Path) -> None:
    picture = tmp_path / "plot.svg"
    done = ran(
        "simulated_app:app",
        *("-d", folder),
        *("--load", "Model=20@2,60@60"),
        *("--load", "Deep=60@1"),
        *("--plot", str(picture)),
    )
    assert "Model: " in done.output
    assert "Deep: " in done.output
    assert "-> 4" in done.output
    assert picture.read_text().startswith("<svg")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "Say what comes"),
        (("--load", "60"), "SECONDS@RATE"),
        (("--load", "Modle=60@5"), "there is no deployment 'Modle'"),
        (("--load", "60@5", "--set", "max_replica=3"), "Did you mean 'max_replicas'"),
        (("--load", "60@5", "--set", "max_replicas=0"), "max_replicas"),
        (("--load", "60@5", "--set", "max_replicas"), "FIELD=VALUE"),
        (("--load", "60@5", "--service", "long"), "number of seconds"),
    ],
)
def test_says_what_is_wrong(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(CommandError, match=message):
        ran(*words)


def test_the_picture_in_the_documentation_is_what_its_command_draws(tmp_path: Path) -> None:
    docs = Path(__file__).parents[3] / "docs"
    page = (docs / "autoscaling.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^\$ remora simulate (.*) --plot docs/autoscaling\.svg$", page, re.M)
    ran(*command.split(), "--plot", str(tmp_path / "new.svg"))
    assert (tmp_path / "new.svg").read_text() == (docs / "autoscaling.svg").read_text()
