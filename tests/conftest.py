"""What all tests share.

Rules: nothing here sleeps, and nothing here knows one particular feature. A fixture that only one
folder needs lives in that folder.
"""

from __future__ import annotations

import gc
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from tests import engines

# The machine may be busy, so no example of a property has a time limit of its own.
settings.register_profile(
    "tests", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("tests")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Started in the background of a shell: what tests start would inherit the deafness to Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)

# What tests start keeps its bytecode, whatever the shell says: to compile everything again takes a
# third of the time in which an instance starts.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--engine` is of the tests alone."""
    parser.addoption(
        "--engine",
        choices=engines.ENGINES,
        default="local",
        help="what tests/e2e and tests/examples run on; other than local: these alone are run",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Before any module of tests is imported, which may ask for the engine."""
    engines.choose(config.getoption("--engine"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """On another engine: what runs on one, with the time that it takes there."""
    if not engines.is_ray():
        return
    others = [each for each in items if not set(engines.FOLDERS) & set(each.path.parents)]
    items[:] = [each for each in items if each not in others]
    config.hook.pytest_deselected(items=others)
    for item in items:
        limit = item.get_closest_marker("timeout")
        limit_s = limit.args[0] if limit else float(config.getini("timeout"))
        item.add_marker(pytest.mark.timeout(engines.patient(limit_s)), append=False)
        if why := item.get_closest_marker("local_only"):
            item.add_marker(pytest.mark.skip(reason=f"local_only: {why.args[0]}"))


def pytest_collection() -> None:
    """Nearly all that is imported and collected stays."""
    gc.disable()


def pytest_collection_finish() -> None:
    """No collection of garbage has to look at it again."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture
def remora_home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give the test a state folder of its own: a short path, because sockets live below it."""
    folder = Path(tempfile.mkdtemp(prefix="remora-t-"))
    monkeypatch.setenv("REMORA_HOME", str(folder))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def _never_the_users_home() -> Iterator[None]:
    """Keep tests that set no state folder away from the developer's own instance."""
    before = os.environ.get("REMORA_HOME")
    folder = tempfile.mkdtemp(prefix="remora-s-")
    os.environ["REMORA_HOME"] = folder
    yield
    if before is None:
        os.environ.pop("REMORA_HOME", None)
    else:
        os.environ["REMORA_HOME"] = before
    shutil.rmtree(folder, ignore_errors=True)
