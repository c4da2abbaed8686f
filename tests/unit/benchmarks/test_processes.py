"""Which processes belong to a command, and how their memory is read."""

from __future__ import annotations

import pytest

from benchmarks.processes import ProcessRow, members, parse_pss_bytes, user_environment


def row(pid: int, parent: int, session: int = 1, *, marked: bool = False) -> ProcessRow:
    return ProcessRow(pid, parent, session, marked)


def test_descendants_belong_whatever_their_session() -> None:
    table = [row(10, 1, 10), row(11, 10, 11), row(12, 11, 12), row(20, 1)]
    assert members(table, 10) == {10, 11, 12}


def test_order_of_the_table_is_irrelevant() -> None:
    table = [row(12, 11), row(11, 10), row(10, 1)]
    assert members(table, 10) == {10, 11, 12}


def test_processes_left_behind_belong_by_session_marker_or_memory() -> None:
    table = [row(11, 1, 10), row(12, 1, 12, marked=True), row(13, 1, 13), row(14, 13), row(20, 1)]
    assert members(table, 10, known=[13]) == {11, 12, 13, 14}


def test_known_processes_that_ended_do_not_belong() -> None:
    assert members([row(20, 1)], 10, known=[11]) == frozenset()


def test_reads_proportional_set_size() -> None:
    text = "5581-7ffd ---p 0 00:00 0 [rollup]\nRss:  9000 kB\nPss:  4321 kB\nPss_Dirty:  7 kB\n"
    assert parse_pss_bytes(text) == 4321 * 1024


def test_memory_file_without_the_figure_is_an_error() -> None:
    with pytest.raises(ValueError, match="Pss"):
        parse_pss_bytes("Rss: 1 kB\n")


def test_commands_run_as_users_run_them() -> None:
    ours = {"PATH": "/bin", "REMORA_HOME": "/x", "PYTHONDONTWRITEBYTECODE": "1"}
    assert user_environment(ours) == {"PATH": "/bin"}
