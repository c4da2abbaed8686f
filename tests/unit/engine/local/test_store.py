"""The key-value store keeps what it said it keeps, and fails in words."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remora.engine.local.store import Store
from remora.errors import EngineError


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "state.db")
    yield made
    made.close()


def test_values_outlive_the_process_that_wrote_them(tmp_path: Path) -> None:
    first = Store(tmp_path / "state.db")
    first.put("a", b"1")
    # Not closed: its process was killed.
    second = Store(tmp_path / "state.db")
    assert second.get("a") == b"1"
    second.close()
    first.close()


@given(st.dictionaries(st.text(alphabet="aA%_/é", max_size=4), st.binary(max_size=8)), st.text())
def test_prefixes_are_taken_literally(entries: dict[str, bytes], prefix: str) -> None:
    store = Store(Path(":memory:"))
    for key, value in entries.items():
        store.put(key, value)
    for start in (prefix, *(key[:2] for key in entries)):
        assert store.keys(start) == sorted(key for key in entries if key.startswith(start))
    store.close()


def test_a_write_that_finds_no_room_keeps_the_old_value(store: Store) -> None:
    store.put("a", b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(EngineError, match="Cannot write the state file"):
            store.put("a", b"x" * 1_000_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert store.get("a") == b"old"
    store.put("a", b"new")
    assert store.get("a") == b"new"


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    path.write_bytes(b"no database, but long enough to look at " * 100)
    with pytest.raises(EngineError, match=r"state\.db.*not a database"):
        Store(path)


@pytest.mark.parametrize("first_page", [1, 2])
def test_damage_behind_the_keys_is_found(tmp_path: Path, first_page: int) -> None:
    path = tmp_path / "state.db"
    store = Store(path)
    for number in range(40):
        store.put(f"deployment/{number:02}", bytes(3000))
    store.check()
    store.close()
    whole = path.read_bytes()
    assert len(whole) > 10 * 4096
    # As a write by somebody else leaves it: the header is whole, the pages behind it are not.
    path.write_bytes(whole[:4096] + b"\xa5" * 4096 * first_page + whole[4096 * (1 + first_page) :])
    store = Store(path)
    with pytest.raises(EngineError, match="Cannot read the state file"):
        store.check()
    store.close()
