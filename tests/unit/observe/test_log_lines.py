"""What is logged, as lines of text and of JSON."""

from __future__ import annotations

import json
import logging
import re
from typing import Any

from remora.observe.log_lines import (
    MAX_MESSAGE_CHARS,
    Answered,
    Lines,
    Logged,
    Printed,
    Source,
    cut,
)
from remora.options.logging import LoggingConfig
from remora.request_context import RequestContext

REPLICA = Source("shop_Model", "ab-1", "shop", "Model", "shop/Model#ab-1")
REQUEST = RequestContext("req-1", "shop", "Model", "shop/Model#ab-1", "/shop")
STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}"


def logged(
    message: str, request: RequestContext | None = REQUEST, level: int = logging.INFO, **extra: Any
) -> Logged:
    record = logging.getLogger("mine").makeRecord(
        "mine", level, "/src/app.py", 7, message, (), None, extra=extra
    )
    return Logged(record, message, request)


def text(entry: Any, **config: Any) -> str:
    return Lines(REPLICA, LoggingConfig(**config)).line(entry).decode()


def fields(entry: Any, source: Source = REPLICA, **config: Any) -> dict[str, Any]:
    line = Lines(source, LoggingConfig(encoding="JSON", **config)).line(entry)
    assert line.endswith(b"\n")
    assert b"\n" not in line[:-1]
    found: dict[str, Any] = json.loads(line)
    return found


def test_a_line_of_text_says_who_and_for_which_request() -> None:
    assert re.fullmatch(f"INFO {STAMP} shop_Model ab-1 req-1 -- hello\n", text(logged("hello")))
    assert re.fullmatch(f"INFO {STAMP} shop_Model ab-1 -- hello\n", text(logged("hello", None)))


def test_what_is_printed_is_told_from_what_is_logged() -> None:
    line = text(Printed("STDERR", "oh", REQUEST))
    assert re.fullmatch(f"STDERR {STAMP} shop_Model ab-1 req-1 -- oh\n", line)
    found = fields(Printed("STDERR", "oh", REQUEST))
    assert (found["message"], found["stream"], found["request_id"]) == ("oh", "stderr", "req-1")


def test_attributes_stand_before_the_message() -> None:
    line = text(logged("hello"), additional_log_standard_attrs=["name", "lineno"])
    assert line.endswith(" req-1 mine 7 -- hello\n")
    assert fields(logged("hello"), additional_log_standard_attrs=["name"])["name"] == "mine"


def test_a_request_id_is_one_column_and_can_begin_no_line() -> None:
    request = RequestContext("a b\nERROR fake")
    assert " a\\x20b\\nERROR\\x20fake -- hello\n" in text(logged("hello", request))


def test_an_exception_follows_its_line() -> None:
    try:
        raise ValueError("no fish")
    except ValueError as error:
        entry = logged("failed")
        entry.record.exc_info = (type(error), error, error.__traceback__)
    lines = text(entry).splitlines()
    assert lines[0].endswith("-- failed")
    assert lines[1] == "Traceback (most recent call last):"
    assert lines[-1] == "ValueError: no fish"
    assert fields(entry)["exc_text"].endswith("ValueError: no fish")


def test_json_has_the_fields_of_ray_serve() -> None:
    found = fields(logged("hello", level=logging.WARNING))
    assert {
        key: found[key] for key in found if key not in ("asctime", "process", "timestamp_ns")
    } == {
        "levelname": "WARNING",
        "message": "hello",
        "filename": "app.py",
        "lineno": 7,
        "component_name": "shop_Model",
        "application": "shop",
        "deployment": "Model",
        "replica": "shop/Model#ab-1",
        "request_id": "req-1",
        "route": "/shop",
    }
    assert re.fullmatch(STAMP, found["asctime"])
    assert "request_id" not in fields(logged("hello", None))


def test_json_of_a_system_process_has_its_component() -> None:
    found = fields(logged("hello", None), Source("controller", "17"))
    assert (found["component_name"], found["component_id"]) == ("controller", "17")
    assert "replica" not in found


def test_extra_fields_are_fields_and_change_no_others() -> None:
    entry = logged("hello", k=1, ray_serve_extra_fields={"a": 2, "message": "other"})
    found = fields(entry)
    assert (found["k"], found["a"], found["message"]) == (1, 2, "hello")
    assert "ray_serve_extra_fields" not in found
    assert fields(logged("hello", ray_serve_extra_fields=3))["ray_serve_extra_fields"] == 3


def test_what_a_library_keeps_in_a_record_is_no_field() -> None:
    assert "_of_a_library" not in fields(logged("hello", _of_a_library=1))


def test_a_value_that_json_does_not_know_is_its_text() -> None:
    assert fields(logged("hello", where=REPLICA.__class__))["where"].startswith("<class")


def test_a_value_without_a_text_spoils_its_own_line_alone() -> None:
    class Bad:
        def __str__(self) -> str:
            raise KeyError("no text")

    lines = Lines(REPLICA, LoggingConfig(encoding="JSON"))
    line = lines.line(logged("hello", where=Bad())).decode()
    assert line.startswith("ERROR ")
    assert "a line cannot be written: KeyError('no text')" in line
    assert b'"message": "fine"' in lines.line(logged("fine"))


def test_what_is_no_text_is_written_as_an_escape() -> None:
    assert text(logged("\ud800")).endswith("-- \\ud800\n")


def test_a_request_that_has_ended_is_one_line() -> None:
    line = text(Answered("CALL predict OK", "req-1", "", 0.0123))
    assert re.fullmatch(f"INFO {STAMP} shop_Model ab-1 req-1 -- CALL predict OK 12\\.3ms\n", line)
    assert fields(Answered("GET '/' OK", "req-1", "/shop", 0.01))["route"] == "/shop"


def test_a_long_message_is_cut() -> None:
    assert cut("x" * MAX_MESSAGE_CHARS) == "x" * MAX_MESSAGE_CHARS
    assert cut("x" * (MAX_MESSAGE_CHARS + 5)).endswith("x… (5 more characters)")
