"""What `remora stubs` writes, where that is not shown by a type checker."""

from __future__ import annotations

from pathlib import Path

import pytest

import remora as serve
from remora.cli.errors import CommandError
from remora.cli.stubs import stubs_of, write_stubs


class Both:
    def __call__(self) -> int:
        return 1

    def remote(self) -> int:
        return 2


def test_a_method_called_remote_does_not_hide_the_call() -> None:
    text = stubs_of(serve.deployment(Both).bind(), "default", "module:app")
    assert text.count("def remote(self) -> _Both") == 1


app = serve.deployment(Both).bind()


def test_a_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"cannot be written to .*none/x\.py"):
        write_stubs(f"{__name__}:app", (), tmp_path, "default", tmp_path / "none" / "x.py")
