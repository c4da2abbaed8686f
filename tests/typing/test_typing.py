"""What mypy and pyright say of users' code: each marked line is an error, and no other.

`# error` means every checker, a name in brackets that one alone (`plugin`: mypy with ours). What a type is
stands in `assert_type`, which the checkers verify.
"""

from __future__ import annotations

import importlib
import json
import re
import shutil
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from remora.handle import DeploymentHandle

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

ROOT = Path(__file__).parents[2]
SNIPPETS = Path(__file__).with_name("snippets")
_MARK = re.compile(r"# error(?:\[(\w[\w ]*)\])?$")


#: What each of them says without the plugin, and with it.
PLAIN = ["plain_classes.py", "uses_stubs.py", "server_handles.py"]
WITH_PLUGIN = ["plain_classes.py", "decorated_classes.py", "through_attributes.py"]
BY_PYRIGHT = [*PLAIN, "decorated_classes.py"]

Lines = set[tuple[str, int]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The snippets, with the module that `remora stubs` makes of one of them."""
    made = tmp_path_factory.mktemp("typing")
    for file in SNIPPETS.glob("*.py"):
        shutil.copy(file, made)
    words = ["-m", "remora", "stubs", "server:app", "-d", str(made), "-o", str(made)]
    done = run(words, made)
    assert done.stdout == f"Wrote {made}/server_handles.py\n", done.stderr
    return made


def run(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def expected(folder: Path, files: list[str], *who: str) -> Lines:
    found = set()
    for name in files:
        for number, line in enumerate((folder / name).read_text().splitlines(), 1):
            if (mark := _MARK.search(line)) and mark[1] in (None, *who):
                found.add((name, number))
    return found


def said_by_mypy(folder: Path, files: list[str], plugin: bool) -> Lines:
    config = folder / f"mypy-{plugin}.ini"
    config.write_text("[mypy]\nstrict = True\n" + "plugins = remora.mypy_plugin\n" * plugin)
    words = ["-m", "mypy", "--config-file", config.name, "--output", "json", *files]
    done = run([*words, "--cache-dir", f"cache-{plugin}"], folder)
    assert done.returncode in (0, 1), done.stderr
    reports = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {(r["file"], r["line"]) for r in reports if r["severity"] == "error"}


def said_by_pyright(folder: Path, files: list[str]) -> Lines:
    config: dict[str, Any] = {"include": files, "extraPaths": [str(ROOT / "src")]}
    config |= {"typeCheckingMode": "standard", "pythonVersion": "3.11"}
    (folder / "pyrightconfig.json").write_text(json.dumps(config))
    words = ["-m", "basedpyright", "--outputjson", "--pythonpath", sys.executable, "-p", "."]
    done = run(words, folder)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return {
        (Path(d["file"]).name, d["range"]["start"]["line"] + 1)
        for d in json.loads(done.stdout)["generalDiagnostics"]
        if d["severity"] == "error"
    }


@pytest.fixture(scope="module")
def said(folder: Path) -> dict[str, Future[Lines]]:
    """The lines that each checker complains about; they work side by side."""
    with ThreadPoolExecutor() as pool:
        return {
            "mypy with plugin": pool.submit(said_by_mypy, folder, WITH_PLUGIN, plugin=True),
            "mypy": pool.submit(said_by_mypy, folder, PLAIN, plugin=False),
            "pyright": pool.submit(said_by_pyright, folder, BY_PYRIGHT),
        }


def test_mypy_knows_methods_with_its_plugin(folder: Path, said: dict[str, Future[Lines]]) -> None:
    marked = expected(folder, WITH_PLUGIN, "mypy", "plugin")
    assert said["mypy with plugin"].result() == marked


def test_mypy_knows_methods_and_stubs_without_its_plugin(
    folder: Path, said: dict[str, Future[Lines]]
) -> None:
    assert said["mypy"].result() == expected(folder, PLAIN, "mypy")


def test_pyright_knows_methods_and_stubs(folder: Path, said: dict[str, Future[Lines]]) -> None:
    assert said["pyright"].result() == expected(folder, BY_PYRIGHT, "pyright")


def test_stubs_lead_to_the_methods_at_run_time(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr("remora.get_deployment_handle", DeploymentHandle)
    handles = importlib.import_module("server_handles")
    assert "server" not in sys.modules
    model = handles.My_ModelHandle("app")
    assert (model.predict.method_name, model.predict.deployment_name) == ("predict", "My-Model")
    assert model.predict.app_name == "app"
    assert model.tokens._stream
    assert not model.predict._stream
    assert model.remote.__self__.method_name == "__call__"
