"""Logs are read again in the order of time, entry by entry."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.observe.test_log_lines import logged

from remora.observe.log_lines import Lines, Logged, Printed, Source
from remora.observe.log_reading import (
    LogParser,
    LogTail,
    entries_of,
    in_order,
    merged_entries,
    parse_since,
    select_logs,
)
from remora.options.logging import LoggingConfig
from remora.request_context import RequestContext

REPLICA = Source("shop_Model", "ab-1", "shop", "Model", "shop/Model#ab-1")
T0 = time.mktime(time.strptime("2026-01-02 03:04:05", "%Y-%m-%d %H:%M:%S"))


def line(at: str, text: str, request_id: str = "") -> bytes:
    column = f"{request_id} " if request_id else ""
    return f"INFO 2026-01-02 03:04:{at} default_A r1 {column}-- {text}\n".encode()


@pytest.mark.parametrize("encoding", ["TEXT", "JSON"])
def test_what_is_written_is_read_with_its_time_and_request(encoding: str) -> None:
    request = RequestContext("req-1")
    lines = Lines(REPLICA, LoggingConfig(encoding=encoding))
    entries: list[Logged | Printed] = [logged("a\nb", request), Printed("STDOUT", "c", None)]
    parser = LogParser()
    found = parser.feed(b"".join(lines.line(entry) for entry in entries)) + parser.end()
    assert [entry.request_id for entry in found] == ["req-1", ""]
    assert b"b" in found[0].lines
    assert abs(found[1].at - time.time()) < 60


def test_the_access_log_is_read_as_well() -> None:
    parser = LogParser()
    parser.feed(b"2026-01-02T03:04:05 127.0.0.1 req-1 shop GET '/a' 200 1.20ms /a\n")
    (found,) = parser.end()
    assert (found.at, found.request_id) == (T0, "req-1")


def test_what_is_no_entry_belongs_to_the_one_before() -> None:
    parser = LogParser()
    text = b"lost\n" + line("05,000", "one", "r") + b"Fatal error\n  deep\n" + line("06,000", "two")
    found = parser.feed(text) + parser.end()
    assert [entry.lines.count(b"\n") for entry in found] == [1, 3, 1]
    assert [entry.request_id for entry in found] == ["", "r", ""]
    assert found[1].at == T0


@given(st.lists(st.integers(1, 40), max_size=30))
def test_how_a_file_is_cut_does_not_matter(cuts: list[int]) -> None:
    text = b"".join(line(f"{n:02d},00{n}", f"text {n}\nmore") for n in range(6))
    whole = LogParser()
    expected = whole.feed(text) + whole.end()
    parser = LogParser()
    found = []
    at = 0
    for cut in cuts:
        found += parser.feed(text[at : at + cut])
        at += cut
    found += parser.feed(text[at:]) + parser.end()
    assert found == expected


def test_old_files_come_first_and_logs_are_merged_by_time(tmp_path: Path) -> None:
    a, b = tmp_path / "a.log", tmp_path / "b.log"
    (tmp_path / "a.log.2").write_bytes(line("01,000", "1"))
    (tmp_path / "a.log.1").write_bytes(line("03,000", "3"))
    a.write_bytes(line("05,000", "5") + b"trace\n")
    b.write_bytes(line("02,000", "2") + line("04,000", "4") + line("06,000", "6"))
    found = list(merged_entries([entries_of(a), entries_of(b)]))
    assert [entry.lines[-2:-1] for entry in found] == [b"1", b"2", b"3", b"4", b"e", b"6"]


def test_what_was_logged_in_one_millisecond_stays_as_it_was_written(tmp_path: Path) -> None:
    a, b = tmp_path / "a.log", tmp_path / "b.log"
    a.write_bytes(line("05,000", "z") + line("05,000", "y"))
    b.write_bytes(line("05,000", "x") + line("05,000", "a") + line("04,000", "set back"))
    merged = list(merged_entries([entries_of(a), entries_of(b)]))
    followed = in_order(entry for path in (a, b) for entry in LogTail(path).read())
    assert [entry.lines[-2:-1] for entry in merged] == [b"z", b"y", b"x", b"a", b"k"]
    assert [entry.lines[-2:-1] for entry in followed] == [b"k", b"z", b"y", b"x", b"a"]


def test_only_the_end_of_a_large_file_is_looked_at(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(b"".join(line(f"05,{n:03d}", "x" * 50) for n in range(1000)))
    found = list(entries_of(path, from_end=1000))
    assert 5 < len(found) < 15
    assert found[-1].at == T0 + 0.999


def test_a_clock_that_is_set_back_does_not_mix_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(line("09,000", "first") + line("01,000", "second"))
    assert [entry.at for entry in entries_of(path)] == [T0 + 4, T0 + 4]


def test_a_file_is_followed_over_its_being_turned_over(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    tail = LogTail(path)
    assert tail.read() == []
    path.write_bytes(line("01,000", "1"))
    assert len(tail.read()) == 1
    with path.open("ab") as file:
        file.write(line("02,000", "2"))
    path.rename(tmp_path / "a.log.1")
    path.write_bytes(line("03,000", "3"))
    assert [entry.lines[-2:-1] for entry in tail.read()] == [b"2", b"3"]
    assert tail.read() == []


def test_logs_are_chosen_by_application_and_deployment(tmp_path: Path) -> None:
    for name in (
        "replica_shop+A+1.log",
        "replica_shop+B+1.log",
        "replica_shop_A+C+1.log",
        "controller.log",
        "access-proxy-1.log",
        "replica_shop+A+1.log.1",
    ):
        (tmp_path / name).touch()

    def names(target: str, *, access: bool = False) -> list[str]:
        return [path.name for path in select_logs(tmp_path, target, access=access)]

    assert names("shop/A") == ["replica_shop+A+1.log"]
    assert names("shop") == ["replica_shop+A+1.log", "replica_shop+B+1.log"]
    assert "access-proxy-1.log" not in names("")
    assert len(names("")) == 4
    assert "access-proxy-1.log" in names("shop", access=True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("30s", -30), ("1.5m", -90), ("2h", -7200), ("1d", -86400)],
)
def test_since_may_be_so_long_ago(text: str, expected: float) -> None:
    assert parse_since(text, 1000.0) == 1000.0 + expected


@pytest.mark.parametrize(
    "text", ["2026-01-02 03:04:05", "2026-01-02T03:04:05", "2026-01-02 03:04", "2026-01-02"]
)
def test_since_may_be_a_date(text: str) -> None:
    assert T0 - 4 * 3600 < parse_since(text, 0.0) <= T0


def test_anything_else_is_refused() -> None:
    with pytest.raises(ValueError, match="'soon' is no time: give 30s"):
        parse_since("soon", 0.0)
