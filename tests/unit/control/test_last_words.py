"""What a process that imports said last, as far as it is the user's."""

from __future__ import annotations

import json
from pathlib import Path

from remora.control.last_words import MAX_LINES, BuilderLog, last_lines
from remora.home import Home


def line(pid: int, said: str) -> str:
    return f"INFO 2026-01-02 03:04:05,678 builder {pid} -- {said}\n"


def test_lines_of_others_and_what_each_line_begins_with_are_left_out() -> None:
    data = line(1, "mine") + line(2, "of another") + line(1, "mine -- too")
    assert last_lines(data.encode(), 1) == ["mine", "mine -- too"]
    assert last_lines(data.encode(), None) == ["mine", "of another", "mine -- too"]


def test_lines_of_json_are_read_too() -> None:
    fields = {"asctime": "2026-01-02 03:04:05,678", "component_id": "1", "message": "mine"}
    data = json.dumps(fields) + "\n" + json.dumps({**fields, "component_id": "2"}) + "\n{no json\n"
    assert last_lines(data.encode(), 1) == ["mine", "{no json"]


def test_of_a_crash_the_frames_of_the_user_are_shown() -> None:
    dump = f"""Fatal Python error: Segmentation fault

Thread 0x00007f9bbea706c0 (most recent call first):
  File "{Path(__file__).parents[3]}/src/remora/observe/log_writer.py", line 154 in _run

Current thread 0x00007f9bc1044b80 (most recent call first):
  File "/home/me/crash.py", line 4 in <module>
  File "<frozen importlib._bootstrap>", line 241 in _call_with_frames_removed

Extension modules: msgspec._core (total: 1)
"""
    assert last_lines((line(1, "loading") + dump).encode(), 1) == [
        "loading",
        "Fatal Python error: Segmentation fault",
        "Current thread 0x00007f9bc1044b80 (most recent call first):",
        '  File "/home/me/crash.py", line 4 in <module>',
    ]


def test_only_what_came_since_and_only_the_end_of_it(tmp_path: Path) -> None:
    home = Home(tmp_path)
    log = BuilderLog(home)
    assert (log.mark(), log.since(0, 1)) == (0, [])
    home.logs.mkdir()
    file = home.logs / "builder.log"
    file.write_text(line(1, "before"))
    mark = log.mark()
    file.write_text(line(1, "before") + "".join(line(1, f"{n}") for n in range(5000)))
    assert log.since(mark, 1) == [str(n) for n in range(5000 - MAX_LINES, 5000)]
    # It was turned over meanwhile.
    file.write_text(line(1, "new"))
    assert log.since(mark * 10, 1) == ["new"]
