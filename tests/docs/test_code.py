"""The code in the documentation runs.

All Python blocks of a page run as one program, in order, each page in a process and a state folder
of its own. Docstrings with examples run as doctests.
"""

from __future__ import annotations

import doctest
import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from tests.docs.conftest import PAGES, ROOT, blocks
from tests.examples.conftest import served

PYTHON_PAGES = [page for page in PAGES if any(b.language == "python" for b in blocks(page))]
DOCTESTED = [
    ".".join(file.relative_to(ROOT / "src").with_suffix("").parts)
    for file in sorted((ROOT / "src").rglob("*.py"))
    if ">>> " in file.read_text()
]


@pytest.mark.slow
@pytest.mark.timeout(60)
@pytest.mark.parametrize("page", PYTHON_PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_blocks_of_a_page_run(page: Path, tmp_path: Path, remora_home: Path) -> None:
    program = tmp_path / "page.py"
    # Blank lines keep the line numbers of the page in tracebacks.
    text = ""
    for block in blocks(page):
        if block.language == "python":
            text += "\n" * (block.line - 1 - text.count("\n")) + block.code
    program.write_text(text)
    done = subprocess.run(
        [sys.executable, "-W", "error", str(program)],
        cwd=tmp_path,
        env={**os.environ, "REMORA_HOME": str(remora_home)},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, f"{page.name}, by its own line numbers:\n{done.stderr}"


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.timeout(90)
def test_hello_world_of_the_readme_answers_as_it_says(tmp_path: Path, remora_home: Path) -> None:
    page = ROOT / "README.md"
    named = re.search(
        r"Save this as `(\w+\.py)`:\n\n```python\n(.*?)^```$", page.read_text(), re.M | re.S
    )
    assert named, "README.md shows no file to save"
    (tmp_path / named[1]).write_text(named[2])
    (session,) = [b.code for b in blocks(page) if b.language == "console"]
    serve, ask, *answer = session.splitlines()
    command = shlex.split(serve.removeprefix("$ "))
    assert command[:2] == ["remora", "run"]
    with served(remora_home, tmp_path, *command[2:]) as example:
        curl = ask.removeprefix("$ ").replace("http://127.0.0.1:8000", example.url)
        done = subprocess.run(
            [*shlex.split(curl), "--silent", "--show-error"],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "\n".join(answer)


def test_examples_in_docstrings_are_right() -> None:
    for name in DOCTESTED:
        result = doctest.testmod(importlib.import_module(name))
        assert result.attempted > 0, name
        assert result.failed == 0, name
