"""What processes log, as lines of text or JSON.

An entry is what was logged, with the request that it was logged for; it is made where that
happened, and becomes a line later, in the thread that writes.

Rules: no IO. A line never raises: what cannot be written says so.
"""

from __future__ import annotations

import json
import logging
import time
import traceback
from typing import Any, NamedTuple

from remora.options.logging import ATTRIBUTES, LoggingConfig
from remora.request_context import RequestContext

#: What `logging` puts into a record by itself; anything else is the user's `extra`.
_STANDARD = ATTRIBUTES | {"message", "asctime"}
#: A dict in `extra` whose keys become keys of the line: Ray Serve's name, and ours.
_FLATTENED = ("ray_serve_extra_fields", "remora_extra_fields")
#: A longer message is cut: it would be one line of a file.
MAX_MESSAGE_CHARS = 256 * 1024


class Source(NamedTuple):
    """Whose lines these are.

    Attributes:
        component: `controller`, `proxy`, or `<application>_<deployment>`.
        component_id: pid, name of the proxy, or the replica's own part of its id.
        application: of a replica; empty elsewhere.
        deployment: of a replica.
        replica: its whole id.
    """

    component: str
    component_id: str
    application: str = ""
    deployment: str = ""
    replica: str = ""


class Logged:
    """A record of `logging`, complete but for what is slow to write."""

    __slots__ = ("message", "record", "request")

    def __init__(
        self, record: logging.LogRecord, message: str, request: RequestContext | None
    ) -> None:
        self.record = record
        self.message = message
        self.request = request


class Printed:
    """A line that was printed."""

    __slots__ = ("created", "request", "stream", "text")

    def __init__(self, stream: str, text: str, request: RequestContext | None) -> None:
        self.created = time.time()
        self.stream = stream
        self.text = text
        self.request = request


class Answered:
    """A request that has ended, for the access log of a replica."""

    __slots__ = ("created", "request_id", "route", "took_s", "what")

    def __init__(self, what: str, request_id: str, route: str, took_s: float) -> None:
        self.created = time.time()
        self.what = what
        self.request_id = request_id
        self.route = route
        self.took_s = took_s


Entry = Logged | Printed | Answered


class Lines:
    """Writes entries of one source as lines, in the way that a config says."""

    def __init__(self, source: Source, config: LoggingConfig) -> None:
        self._source = source
        self._attributes = [
            name
            for name in config.additional_log_standard_attrs
            if name not in ("message", "asctime")
        ]
        self._write = self._json if config.encoding == "JSON" else self._text
        self._second = 0
        self._stamp = ""

    def line(self, entry: Entry) -> bytes:
        """Write an entry, with its line feed."""
        try:
            text = self._write(entry)
        # Border: texts of values of the user's, and their classes may do anything.
        except Exception as error:  # noqa: BLE001
            text = f"ERROR {self._time(time.time())} a line cannot be written: {error!r}"
        return text.encode("utf-8", "backslashreplace") + b"\n"

    def note(self, text: str) -> bytes:
        """Write a line of the log's own."""
        record = logging.LogRecord("remora.log", logging.WARNING, __file__, 0, text, None, None)
        return self.line(Logged(record, text, None))

    def _time(self, created: float) -> str:
        second = int(created)
        if second != self._second:
            self._second = second
            self._stamp = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second))
        return f"{self._stamp},{int((created - second) * 1000):03d}"

    # -- text -------------------------------------------------------------------------------

    def _text(self, entry: Entry) -> str:
        source = self._source
        attributes = ""
        if isinstance(entry, Logged):
            record = entry.record
            level, created, message = record.levelname, record.created, entry.message
            for name in self._attributes:
                attributes += f"{getattr(record, name, None)} "
            message = "\n".join(part for part in (message, *_details(record)) if part)
        elif isinstance(entry, Printed):
            level, created, message = entry.stream, entry.created, entry.text
        else:
            level, created = "INFO", entry.created
            message = f"{entry.what} {entry.took_s * 1000:.1f}ms"
        request_id = _request_id(entry)
        id_column = f"{column(request_id)} " if request_id else ""
        return (
            f"{level} {self._time(created)} {column(source.component)} {source.component_id} "
            f"{id_column}{attributes}-- {message}"
        )

    # -- JSON -------------------------------------------------------------------------------

    def _json(self, entry: Entry) -> str:
        source = self._source
        fields: dict[str, Any] = {}
        if isinstance(entry, Logged):
            self._describe(entry, fields)
        else:
            fields["asctime"] = self._time(entry.created)
            fields["levelname"] = "INFO"
            fields["timestamp_ns"] = int(entry.created * 1e9)
            if isinstance(entry, Printed):
                fields["message"] = entry.text
                fields["stream"] = entry.stream.lower()
            else:
                fields["message"] = f"{entry.what} {entry.took_s * 1000:.1f}ms"
        fields["component_name"] = source.component
        if source.replica:
            fields["application"] = source.application
            fields["deployment"] = source.deployment
            fields["replica"] = source.replica
        else:
            fields["component_id"] = source.component_id
        request_id = _request_id(entry)
        if request_id:
            fields["request_id"] = request_id
            fields["route"] = entry.route if isinstance(entry, Answered) else _route(entry)
        return json.dumps(fields, default=str, ensure_ascii=False)

    def _describe(self, entry: Logged, fields: dict[str, Any]) -> None:
        record = entry.record
        fields["asctime"] = self._time(record.created)
        fields["levelname"] = record.levelname
        fields["message"] = entry.message
        fields["filename"] = record.filename
        fields["lineno"] = record.lineno
        fields["process"] = record.process
        fields["timestamp_ns"] = int(record.created * 1e9)
        details = zip(("exc_text", "stack_info"), _details(record), strict=True)
        fields.update((name, text) for name, text in details if text)
        for name in self._attributes:
            fields.setdefault(name, getattr(record, name, None))
        for name, value in record.__dict__.items():
            if name in _STANDARD or name.startswith("_"):
                # Not the user's: a library keeps something in the record (Ray does).
                continue
            if name in _FLATTENED and isinstance(value, dict):
                for key, part in value.items():
                    fields.setdefault(str(key), part)
            else:
                fields.setdefault(name, value)


def _request_id(entry: Entry) -> str:
    if isinstance(entry, Answered):
        return entry.request_id
    return entry.request.request_id if entry.request is not None else ""


def _route(entry: Logged | Printed) -> str:
    return entry.request.route if entry.request is not None else ""


def cut(message: str) -> str:
    """A message as far as a line has room for it."""
    if len(message) <= MAX_MESSAGE_CHARS:
        return message
    left = len(message) - MAX_MESSAGE_CHARS
    return f"{message[:MAX_MESSAGE_CHARS]}… ({left} more characters)"


def _details(record: logging.LogRecord) -> tuple[str, str]:
    """The traceback and the stack of a record."""
    text = record.exc_text or ""
    if not text and record.exc_info and record.exc_info[1] is not None:
        text = "".join(traceback.format_exception(*record.exc_info)).rstrip("\n")
    return text, record.stack_info or ""


def column(text: str) -> str:
    """What others chose, as one column of a line: it must not look like several."""
    if text.isascii() and text.isprintable() and " " not in text:
        return text
    return text.encode("unicode_escape").decode("ascii").replace(" ", "\\x20")
