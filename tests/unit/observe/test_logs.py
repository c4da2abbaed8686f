"""Records of any logger reach the file, complete, with the request that they were logged for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from remora.observe.log_files import LogFile
from remora.observe.log_lines import Lines, Source
from remora.observe.log_writer import LogWriter
from remora.observe.logs import RecordHandler, logging_of
from remora.options.logging import LoggingConfig
from remora.request_context import RequestContext, current


@pytest.fixture
def logger(tmp_path: Path) -> Iterator[tuple[logging.Logger, Callable[[], str]]]:
    """A logger like the root of a process, and what it has written once it has ended."""
    file = LogFile(tmp_path / "a.log", max_bytes=10**6, max_old=1)
    writer = LogWriter(Lines(Source("controller", "1"), LoggingConfig()), file)
    made = logging.getLogger("tests.root_of_a_process")
    made.setLevel(logging.INFO)
    made.propagate = False
    made.handlers[:] = [RecordHandler(writer)]

    def written() -> str:
        writer.close()
        return file.path.read_text()

    yield made, written
    made.handlers.clear()
    writer.close()
    file.close()


def test_a_record_has_the_request_and_the_values_of_its_moment(
    logger: tuple[logging.Logger, Callable[[], str]],
) -> None:
    log, written = logger
    found = [1]
    token = current.set(RequestContext("req-9"))
    log.info("found %s", found)
    current.reset(token)
    found.append(2)
    log.info("later %s", found)
    lines = written().splitlines()
    assert lines[0].endswith(" controller 1 req-9 -- found [1]")
    assert lines[1].endswith(" controller 1 -- later [1, 2]")


def test_a_message_that_cannot_be_made_spoils_nothing(
    logger: tuple[logging.Logger, Callable[[], str]], capsys: pytest.CaptureFixture[str]
) -> None:
    log, written = logger
    # Not by way of the logger: the handlers of tests would see it as well, and fail.
    bad = log.makeRecord(log.name, logging.INFO, __file__, 1, "%d fish", ("many",), None)
    log.handlers[0].handle(bad)
    log.info("fine")
    text = written()
    assert text.endswith("-- fine\n")
    assert text.count("\n") == 1
    # Where a process prints, which is its log.
    assert "Logging error" in capsys.readouterr().err


def test_a_logger_of_the_users_may_have_a_level_of_its_own(
    logger: tuple[logging.Logger, Callable[[], str]],
) -> None:
    log, written = logger
    own = log.getChild("own")
    own.setLevel(logging.DEBUG)
    own.debug("asked for")
    log.debug("not asked for")
    text = written()
    assert "DEBUG" in text
    assert "-- asked for\n" in text
    assert "not asked for" not in text


def test_processes_are_told_how_to_log_by_their_arguments() -> None:
    assert logging_of({}) == LoggingConfig()
    assert logging_of({"logging": None}) == LoggingConfig()
    assert logging_of({"logging": {"encoding": "JSON"}}) == LoggingConfig(encoding="JSON")
