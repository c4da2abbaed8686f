"""`sys.stdout` and `sys.stderr` of our processes hand on what is printed, line by line."""

from __future__ import annotations

import io
import logging
import threading
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from remora.observe.captured import CapturedStream


def capture() -> tuple[CapturedStream, list[str]]:
    lines: list[str] = []
    return CapturedStream("STDOUT", io.StringIO(), lambda _, line: lines.append(line)), lines


def test_print_hands_on_lines() -> None:
    stream, lines = capture()
    print("one", 2, file=stream)
    print("a\nb", file=stream, end="")
    print("c", file=stream)
    print(file=stream)
    assert lines == ["one 2", "a", "bc", ""]


@given(st.lists(st.text("ab\n ", max_size=5)))
def test_how_text_is_cut_into_writes_does_not_matter(parts: list[str]) -> None:
    stream, lines = capture()
    for part in parts:
        assert stream.write(part) == len(part)
    stream.close_line()
    expected = "".join(parts).split("\n")
    assert lines == (expected if expected[-1] else expected[:-1])


def test_a_progress_bar_is_its_last_state() -> None:
    stream, lines = capture()
    for percent in range(0, 101, 10):
        stream.write(f"\r{percent}%")
    stream.write("\n")
    stream.write("windows\r\n")
    assert lines == ["100%", "windows"]


def test_what_never_ends_is_handed_on_in_parts() -> None:
    stream, lines = capture()
    for _ in range(100):
        stream.write("x" * 1000)
    assert lines
    assert len(lines[0]) <= 70_000


def test_threads_do_not_mix_their_lines() -> None:
    stream, lines = capture()
    stream.write("main ")

    def work() -> None:
        stream.write("other\n")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    stream.write("end\n")
    assert lines == ["other", "main end"]


def test_it_serves_where_a_stream_of_text_is_expected(tmp_path: Path) -> None:
    lines: list[str] = []
    with (tmp_path / "out").open("w") as original:
        stream = CapturedStream("STDERR", original, lambda _, line: lines.append(line))
        logging.StreamHandler(stream).emit(logging.makeLogRecord({"msg": "logged"}))
        stream.writelines(["a\n", "b\n"])
        stream.buffer.write(b"bytes")
        stream.reconfigure(line_buffering=True)
        assert stream.fileno() == original.fileno()
        assert not stream.isatty()
        assert stream.writable()
        assert (stream.encoding, stream.errors) == ("utf-8", "backslashreplace")
        stream.flush()
    assert lines == ["logged", "a", "b"]
    assert (tmp_path / "out").read_bytes() == b"bytes"
    assert isinstance(stream, io.TextIOBase)
