"""The access log keeps a bounded number of lines, and says what it did not keep."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path

import pytest

from remora.observe import access
from remora.observe.access import AccessLog
from remora.options.logging import LoggingConfig
from remora.wire.messages import HttpHead

HEAD = HttpHead("GET", "/x", b"/x", b"", "", [])


def add(log: AccessLog, request_id: str) -> None:
    log.add(HEAD, request_id, "app", 200, 0.001, "/{x}")


async def test_a_line_for_each_request(tmp_path: Path) -> None:
    log = AccessLog(tmp_path / "access.log")
    for number in range(3):
        add(log, f"r{number}")
    log.close()
    lines = (tmp_path / "access.log").read_text().splitlines()
    assert [line.split()[2] for line in lines] == ["r0", "r1", "r2"]
    assert "GET '/x' 200 1.00ms /{x}" in lines[0]


async def test_a_disk_that_stalls_costs_lines_and_not_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "FLUSH_S", 0.001)
    monkeypatch.setattr(access, "MAX_PENDING", 10)
    log = AccessLog(tmp_path / "access.log")
    stalled, disk = threading.Event(), threading.Event()
    write = log._write

    def slow(*args: object) -> None:
        stalled.set()
        disk.wait(5)
        write(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(log, "_write", slow)
    add(log, "first")
    while not stalled.is_set():
        await asyncio.sleep(0.001)
    for number in range(40):
        add(log, f"r{number}")
        await asyncio.sleep(0.001)
    assert len(log._pending) == 10
    disk.set()
    log.close()
    lines = (tmp_path / "access.log").read_text().splitlines()
    assert len(lines) == 12
    assert "30 lines were dropped" in lines[-1]


async def test_what_a_client_chose_as_its_id_is_one_column(tmp_path: Path) -> None:
    log = AccessLog(tmp_path / "access.log")
    add(log, "a\tshop GET '/' 200 0.10ms\\x20é")
    log.close()
    (line,) = (tmp_path / "access.log").read_text().splitlines()
    _, _, request_id, app, *_ = line.split(" ")
    assert (request_id, app) == (r"a\tshop\x20GET\x20'/'\x20200\x200.10ms\\x20\xe9", "app")


async def test_lines_may_be_json(tmp_path: Path) -> None:
    log = AccessLog(tmp_path / "access.log", config=LoggingConfig(encoding="JSON"))
    add(log, "r 1")
    log.close()
    found = json.loads((tmp_path / "access.log").read_text())
    asctime = found.pop("asctime")
    assert len(asctime) == len("2026-01-31 12:00:00,123")
    assert found == {
        "levelname": "INFO",
        "component_name": "access",
        "message": "GET /x 200 1.00ms",
        "client": "-",
        "request_id": "r 1",
        "application": "app",
        "method": "GET",
        "path": "/x",
        "status": 200,
        "took_ms": 1.0,
        "route": "/{x}",
    }


async def test_without_an_access_log_there_is_no_file(tmp_path: Path) -> None:
    log = AccessLog(tmp_path / "access.log", config=LoggingConfig(enable_access_log=False))
    add(log, "r1")
    log.close()
    assert list(tmp_path.iterdir()) == []


async def test_a_full_file_is_put_aside(tmp_path: Path) -> None:
    config = LoggingConfig(max_file_bytes=4096, max_old_files=1)
    log = AccessLog(tmp_path / "access.log", config=config)
    for number in range(200):
        add(log, f"r{number}")
    log.close()
    assert (tmp_path / "access.log.1").stat().st_size > 4096
    assert (tmp_path / "access.log").stat().st_size == 0


async def test_a_disk_that_takes_nothing_loses_lines_and_counts_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "logs" / "access.log"
    path.parent.touch()
    log = AccessLog(path)
    add(log, "lost")
    log._hand_over()
    assert log._writing is not None
    await asyncio.wrap_future(log._writing)
    assert "cannot be written" in caplog.text
    path.parent.unlink()
    add(log, "kept")
    log.close()
    lines = path.read_text().splitlines()
    assert "kept" in lines[0]
    assert "1 lines were dropped" in lines[1]
