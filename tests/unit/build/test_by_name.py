"""What decorators put in the place of functions travels by name, as functions do."""

from __future__ import annotations

import importlib
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle
import pytest

from remora.build.pickling import dumps_by_value

MODULE = """
import threading
import remora as serve

LOCK = threading.Lock()

@serve.batch
async def score(items):
    with LOCK:
        return items

@serve.batch
async def stream(items):
    with LOCK:
        yield items

@serve.multiplexed
async def load(model_id):
    with LOCK:
        return model_id

class Model:
    @serve.batch
    async def score(self, items):
        with LOCK:
            return items

    @serve.multiplexed
    async def load(self, model_id):
        with LOCK:
            return model_id
"""
NAMES = ["score", "stream", "load", "Model.score", "Model.load"]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    (tmp_path / "holds_a_lock.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("holds_a_lock")
    del sys.modules["holds_a_lock"]


def get(module: ModuleType, name: str) -> Any:
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_what_a_module_has_under_its_name_travels_as_that_name(
    module: ModuleType, name: str
) -> None:
    target = get(module, name)
    for data in (pickle.dumps(target), cloudpickle.dumps(target)):
        assert pickle.loads(data) is target
        assert len(data) < 100


def test_what_a_script_defines_travels_by_value() -> None:
    code = (
        "import cloudpickle, sys, remora as serve\n"
        "@serve.batch\n"
        "async def score(items): return items\n"
        "sys.stdout.buffer.write(cloudpickle.dumps(score))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert pickle.loads(done.stdout).__name__ == "score"


def test_what_other_processes_cannot_import_travels_by_value(module: ModuleType) -> None:
    with pytest.raises(Exception, match="lock"):
        dumps_by_value(module.score, "it")
    cloudpickle.register_pickle_by_value(module)
    try:
        with pytest.raises(TypeError, match="lock"):
            cloudpickle.dumps(module.score)
    finally:
        cloudpickle.unregister_pickle_by_value(module)
