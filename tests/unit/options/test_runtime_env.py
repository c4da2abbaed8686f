"""`runtime_env`: what is read, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from remora.errors import ConfigError, NotSupportedYetError
from remora.options import runtime_env
from remora.options.resources import RuntimeEnv
from remora.options.runtime_env import read_runtime_env


def read(**given: Any) -> RuntimeEnv:
    found = read_runtime_env("runtime_env", given)["runtime_env"]
    assert isinstance(found, RuntimeEnv)
    return found


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, RuntimeEnv()),
        ({"env_vars": {"A": "1"}}, RuntimeEnv()),
        ({"working_dir": "x"}, RuntimeEnv(working_dir="x")),
        ({"working_dir": Path("x")}, RuntimeEnv(working_dir="x")),
        ({"working_dir": "local:///x"}, RuntimeEnv(working_dir="/x")),
        ({"py_modules": ["a", "b.whl"]}, RuntimeEnv(py_modules=("a", "b.whl"))),
        ({"excludes": ["*.bin"]}, RuntimeEnv(excludes=("*.bin",))),
        ({"pip": ["a", "b==1"]}, RuntimeEnv(packages=("a", "b==1"))),
        ({"uv": ["a"]}, RuntimeEnv(packages=("a",), installer="uv")),
        ({"pip": "req.txt"}, RuntimeEnv(requirements_file="req.txt")),
        (
            {"pip": {"packages": ["a"], "pip_check": False, "pip_install_options": ["--no-deps"]}},
            RuntimeEnv(packages=("a",), install_options=("--no-deps",)),
        ),
        (
            {"uv": {"packages": "req.txt", "uv_pip_install_options": ["--offline"]}},
            RuntimeEnv(requirements_file="req.txt", installer="uv", install_options=("--offline",)),
        ),
    ],
)
def test_reads_what_ray_users_write(given: dict[str, Any], expected: RuntimeEnv) -> None:
    assert read(**given) == expected


def test_a_module_stands_for_its_folder_or_file() -> None:
    assert read(py_modules=[runtime_env]).py_modules == (runtime_env.__file__,)
    folder = Path(runtime_env.__file__).parent.parent
    assert read(py_modules=[__import__("remora")]).py_modules == (str(folder),)


@pytest.mark.parametrize(
    "given",
    [
        {"working_dirs": "x"},
        {"working_dir": 1},
        {"py_modules": "x"},
        {"py_modules": [1]},
        {"pip": []},
        {"pip": ""},
        {"pip": 1},
        {"pip": [""]},
        {"pip": {"package": ["a"]}},
        {"pip": {"packages": ["a"], "pip_install_options": "--no-deps"}},
        {"pip": ["a"], "uv": ["a"]},
        {"env_vars": {"A": 1}},
    ],
)
def test_refuses_what_cannot_be_right(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        read(**given)
    assert not isinstance(caught.value, NotSupportedYetError)


@pytest.mark.parametrize(
    "given",
    [
        {"conda": "env"},
        {"image_uri": "x"},
        {"container": {}},
        {"working_dir": "s3://bucket/x.zip"},
        {"py_modules": ["https://example.org/x.zip"]},
        {"pip": {"packages": ["a"], "pip_version": "==23"}},
        {"pip": {"packages": ["a"], "pip_check": True}},
    ],
)
def test_says_what_only_ray_has(given: dict[str, Any]) -> None:
    with pytest.raises(NotSupportedYetError):
        read(**given)
