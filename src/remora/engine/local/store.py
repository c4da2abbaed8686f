"""A small durable key-value store in one SQLite file.

A write is in the operating system's hands when `put` returns, so it survives the death of every
process. It is not forced to the disk: after a power failure the last writes may be missing, and
never half of one. Forcing it would cost up to a hundred milliseconds per deploy step, on the loop
of the controller.

Concurrency: one thread, one process at a time; a second process waits for a moment, then fails.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from remora.errors import EngineError

#: A controller that was just killed may leave its successor a lock for this long.
_BUSY_S = 2.0


def keys_at_rest(path: Path, prefix: str) -> list[str]:
    """Keys of a file that nobody has open; no file: none.

    Args:
        path: of the file.
        prefix: keys begin with it.

    Raises:
        EngineError: the file cannot be read.
    """
    if not path.exists():
        return []
    store = Store(path)
    try:
        return store.keys(prefix)
    finally:
        store.close()


class Store:
    """Keys and values; open from construction on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._db = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None)
        except sqlite3.Error as error:
            raise self._failure("open", error) from None
        try:
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS entries "
                "(key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID"
            )
        except sqlite3.Error as error:
            self._db.close()
            raise self._failure("open", error) from None

    def get(self, key: str) -> bytes | None:
        """Read a value; None: no such key.

        Raises:
            EngineError: the file cannot be read.
        """
        row = self._execute("read", "SELECT value FROM entries WHERE key = ?", (key,)).fetchone()
        return None if row is None else bytes(row[0])

    def put(self, key: str, value: bytes) -> None:
        """Write a value.

        Raises:
            EngineError: it could not be written; the old value stays.
        """
        self._execute("write", "INSERT OR REPLACE INTO entries VALUES (?, ?)", (key, value))

    def delete(self, key: str) -> None:
        """Forget a key.

        Raises:
            EngineError: the file cannot be written.
        """
        self._execute("write", "DELETE FROM entries WHERE key = ?", (key,))

    def keys(self, prefix: str) -> list[str]:
        """Keys that begin with `prefix`, sorted.

        Raises:
            EngineError: the file cannot be read.
        """
        rows = self._execute(
            "read",
            "SELECT key FROM entries WHERE substr(key, 1, ?) = ? ORDER BY key",
            (len(prefix), prefix),
        )
        return [str(row[0]) for row in rows]

    def check(self) -> None:
        """Look at every page: a file may list its keys and yet have lost what belongs to them.

        Raises:
            EngineError: the file is damaged, or cannot be read.
        """
        (found,) = self._execute("read", "PRAGMA quick_check(1)", ()).fetchone()
        if found != "ok":
            raise self._failure("read", sqlite3.DatabaseError(" ".join(str(found).split())))

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def _execute(self, verb: str, sql: str, values: tuple[object, ...]) -> sqlite3.Cursor:
        try:
            return self._db.execute(sql, values)
        except sqlite3.Error as error:
            raise self._failure(verb, error) from None

    def _failure(self, verb: str, error: sqlite3.Error) -> EngineError:
        return EngineError(
            f"Cannot {verb} the state file {self._path}: {error}. See that its disk has room and "
            "that the file is whole; moving it away starts with no applications."
        )
