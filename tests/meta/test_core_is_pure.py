"""`core` uses randomness only as an argument: `random.Random` is a type there, nothing else.

The import table in pyproject.toml forbids the other doors (clock, loop, files, threads, logging).
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import remora

CORE = Path(remora.__file__).parent / "core"


def impure_uses_of_random(source: str) -> list[str]:
    """Name each use of the module `random` other than the type `random.Random`."""
    tree = ast.parse(source)
    found = [
        f"line {node.lineno}: from random import {alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "random"
        for alias in node.names
        if alias.name != "Random"
    ]
    found += [
        f"line {node.lineno}: random.{node.attr}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "random"
        and node.attr != "Random"
    ]
    # `random.Random(...)` or `Random()` makes a generator: the caller passes one instead.
    found += [
        f"line {node.lineno}: makes a generator"
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and (
            (isinstance(node.func, ast.Attribute) and node.func.attr == "Random")
            or (isinstance(node.func, ast.Name) and node.func.id == "Random")
        )
    ]
    return found


@pytest.mark.parametrize(
    "path", sorted(CORE.rglob("*.py")), ids=lambda path: str(path.relative_to(CORE))
)
def test_core_takes_randomness_as_an_argument(path: Path) -> None:
    assert impure_uses_of_random(path.read_text(encoding="utf-8")) == []


def test_the_check_sees_what_it_looks_for() -> None:
    assert impure_uses_of_random("import random\nx = random.random()")
    assert impure_uses_of_random("from random import choice")
    assert impure_uses_of_random("from random import Random\nr = Random(1)")
    assert not impure_uses_of_random("import random\ndef f(rng: random.Random) -> None: ...")
