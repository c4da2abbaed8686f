"""Code travels by reference where a replica can import it, by value where it cannot."""

from __future__ import annotations

import importlib
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import remora
from remora.build.pickling import deployed_reference, dumps_call, is_importable
from remora.deployment import deployment
from remora.errors import CodeNotPicklableError, DeployError


def nothing_to_replace(_: object) -> object:
    raise AssertionError("there is no application among the arguments")


def dumps(code: Any, *args: Any) -> bytes:
    return dumps_call(code, args, {}, nothing_to_replace)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A user's module, on `sys.path`."""
    (tmp_path / "user_module.py").write_text(
        "from remora.deployment import deployment\n"
        "@deployment\n"
        "class Hidden:\n"
        "    class Inner: pass\n"
        "class Plain: pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("user_module")
    del sys.modules["user_module"]


def test_a_decorated_class_of_a_module_goes_by_reference(module: ModuleType) -> None:
    code = dumps(module.Hidden.func_or_class)
    assert b"user_module" in code
    assert len(code) < 200
    assert pickle.loads(code)[0] is module.Hidden.func_or_class


def test_a_plain_class_of_a_module_goes_by_reference(module: ModuleType) -> None:
    assert pickle.loads(dumps(module.Plain))[0] is module.Plain


@pytest.mark.slow
def test_a_module_that_cannot_be_imported_goes_by_value(module: ModuleType) -> None:
    sys.path.remove(str(Path(str(module.__file__)).parent))
    sys.path_importer_cache.clear()
    assert not is_importable(module)
    # Loading it here would find the class that cloudpickle still remembers.
    load = "import pickle, sys; print(pickle.load(sys.stdin.buffer)[0].__name__)"
    done = subprocess.run(
        [sys.executable, "-c", load], input=dumps(module.Plain), capture_output=True, check=True
    )
    assert done.stdout.strip() == b"Plain"
    # The registry of the library is left as it was.
    import cloudpickle

    assert "user_module" not in cloudpickle.list_registry_pickle_by_value()


def test_local_classes_go_by_value() -> None:
    class Local:
        def answer(self) -> int:
            return 42

    cls, _, _ = pickle.loads(dumps(Local))
    assert cls().answer() == 42


def test_code_may_use_the_package_itself() -> None:
    class Local:
        def __call__(self) -> object:
            return remora.status

    assert pickle.loads(dumps(Local))[0].__name__ == "Local"
    assert pickle.loads(pickle.dumps(remora)) is remora


def test_installed_and_standard_modules_are_importable() -> None:
    import json

    assert is_importable(json)
    assert is_importable(pytest)
    assert not is_importable(ModuleType("made_up"))


def test_nothing_is_hidden_in_main_or_in_functions() -> None:
    class Local:
        pass

    assert deployed_reference(deployment(Local).func_or_class) is None


@pytest.mark.slow
def test_a_script_needs_no_importable_module(tmp_path: Path) -> None:
    """What `__main__` defines is opened by a process that does not have that script."""
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "from remora.deployment import deployment\n"
        "from remora.build.graph import build\n"
        "offset = 40\n"
        "@deployment\n"
        "class Adder:\n"
        "    def __init__(self, x): self.x = x\n"
        "    def __call__(self): return self.x + offset\n"
        "sys.stdout.buffer.write(build(Adder.bind(2)).deployments[0].code)\n"
    )
    code = subprocess.run([sys.executable, str(script)], capture_output=True, check=True).stdout
    cls, args, kwargs = pickle.loads(code)
    assert cls(*args, **kwargs)() == 42


def test_names_the_class_attribute_that_cannot_travel() -> None:
    class Local:
        state = threading.Lock()

    with pytest.raises(CodeNotPicklableError, match=r"class attribute .*Local\.state"):
        dumps(Local)


def test_names_the_variable_that_cannot_travel() -> None:
    held = threading.Lock()

    class Local:
        def __call__(self) -> object:
            return held

    with pytest.raises(CodeNotPicklableError, match=r"method .*__call__.* 'held'"):
        dumps(Local)


def test_names_the_argument_that_cannot_travel() -> None:
    class Config:
        def __init__(self) -> None:
            self.guard = threading.Lock()

    with pytest.raises(CodeNotPicklableError, match=r"argument 1 .*\['c'\].*attribute 'guard'"):
        dumps(int, 0, {"c": Config()})


def test_the_error_is_a_deploy_error_and_a_type_error() -> None:
    assert issubclass(CodeNotPicklableError, DeployError)
    assert issubclass(CodeNotPicklableError, TypeError)
    copy = pickle.loads(pickle.dumps(CodeNotPicklableError("the code", "no")))
    assert copy.where == "the code"
