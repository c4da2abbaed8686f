"""What a folder holds has a digest of its own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remora.engine.contents import digest_of

files = st.dictionaries(
    st.sampled_from(["a.py", "b/c.py", "b/d/e.txt", "f.sh"]), st.binary(max_size=4), max_size=4
)


def write(folder: Path, content: dict[str, bytes]) -> None:
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


@settings(max_examples=40, deadline=None)
@given(files, files)
def test_digests_are_equal_when_the_content_is(
    tmp_path_factory: pytest.TempPathFactory, one: dict[str, bytes], two: dict[str, bytes]
) -> None:
    first, second = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    write(first, one)
    write(second, two)
    assert (digest_of(str(first), ()) == digest_of(str(second), ())) == (one == two)


def test_what_tools_leave_behind_does_not_count(tmp_path: Path) -> None:
    write(tmp_path, {"a.py": b"1"})
    before = digest_of(str(tmp_path), ("data",))
    write(tmp_path, {"__pycache__/a.pyc": b"x", ".git/HEAD": b"x", "data/large": b"x"})
    os.mkfifo(tmp_path / "pipe")
    assert digest_of(str(tmp_path), ("data",)) == before
    (tmp_path / "a.py").chmod(0o755)
    assert digest_of(str(tmp_path), ("data",)) != before
