"""What mypy says about a user's file, with the plugin and without."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

SERVER = """
import remora as serve
from remora import deployment


@serve.deployment
class Model:
    def __init__(self, size: int) -> None:
        self.size = size


@deployment(num_replicas=2)
class Front:
    def __init__(self, model: object) -> None:
        self.model = model


@deployment
def plain() -> int:
    return 1


reveal_type(Front.options(num_replicas=3).bind(Model.bind(3)))
reveal_type(plain.bind())
Model.blind()
"""


@pytest.mark.parametrize("plugin", [True, False])
def test_a_decorated_class_can_be_bound_and_misspellings_are_still_found(
    plugin: bool, tmp_path: Path
) -> None:
    (tmp_path / "server.py").write_text(SERVER)
    config = tmp_path / "mypy.ini"
    config.write_text("[mypy]\nstrict = True\n" + "plugins = remora.mypy_plugin\n" * plugin)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", config, "server.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    bound = 'Revealed type is "remora.deployment.Application"'
    assert done.stdout.count(bound) == (2 if plugin else 1), done.stdout + done.stderr
    assert done.stdout.count('has no attribute "bind"') == (0 if plugin else 1)
    assert '"type[Model]" has no attribute "blind"' in done.stdout
