"""How a process of an instance logs: `logging`, prints and native output, to a file of its own."""

from __future__ import annotations

import atexit
import faulthandler
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from remora.engine.base import ProcessContext
from remora.home import Home
from remora.observe.captured import CapturedStream
from remora.observe.log_files import LogFile, old_path, replica_log_name, sweep
from remora.observe.log_lines import Answered, Lines, Logged, Printed, Source, cut
from remora.observe.log_writer import LogWriter
from remora.options.logging import LoggingConfig
from remora.request_context import current
from remora.types import ReplicaID, Seconds

_STDOUT, _STDERR = 1, 2
#: Of this process; more than one only in tests.
_log = logging.getLogger("remora.engine")
_logs: list[ProcessLog] = []


class RecordHandler(logging.Handler):
    """Hands records of `logging` to the writer, with the request that they were logged for."""

    def __init__(self, writer: LogWriter) -> None:
        super().__init__()
        self._writer = writer

    def handle(self, record: logging.LogRecord) -> bool:
        """Filter and take a record as every handler does, without a lock: taking needs none."""
        # From Python 3.12 on, a filter may answer with another record.
        found: object = self.filter(record)
        if found:
            self.emit(found if isinstance(found, logging.LogRecord) else record)
        return bool(found)

    def emit(self, record: logging.LogRecord) -> None:
        """Take a record. Its arguments may be others by the time that it is written."""
        try:
            message = cut(record.getMessage())
        # Border: texts of values of the user's.
        except Exception:  # noqa: BLE001
            self.handleError(record)
            return
        self._writer.put(Logged(record, message, current.get()), len(message))


class ProcessLog:
    """The log of this process.

    Attributes:
        has_access_lines: each request that has ended is to be told.
    """

    def __init__(
        self,
        home: Home,
        name: str,
        source: Source,
        default: LoggingConfig,
        own: LoggingConfig | None = None,
        *,
        shown: bool = False,
        direct: bool = False,
    ) -> None:
        """Send everything that this process logs and prints to a file.

        Args:
            home: the instance.
            name: of the file.
            source: whose lines they are.
            default: how, as the instance says.
            own: how, where the deployment says; a folder that cannot be written is not taken yet.
            shown: somebody keeps, and shows, what is written to the descriptors of this process:
                they stay as they are, and get a copy of each line.
            direct: each line is in the file before the process goes on, for one that may end at
                any moment and that nobody waits for.
        """
        self._usual = home.logs / name
        self._redirected = () if shown else (_STDOUT, _STDERR)
        self._copy = os.dup(_STDERR) if shown else None
        self._source = source
        self._default = default
        self._config = own or default
        try:
            file = self._open(self._config)
        except OSError:
            # Where nothing can be said, nothing can be learned: the replica says it once it is asked.
            self._config = msgspec.structs.replace(default, logs_dir=None)
            file = self._open(self._config)
        self.has_access_lines = False
        self._writer = LogWriter(Lines(source, self._config), file, direct=direct)
        self._show_where(file.path)
        self._streams = [
            CapturedStream("STDOUT", sys.stdout, self._on_printed),
            CapturedStream("STDERR", sys.stderr, self._on_printed),
        ]
        sys.stdout, sys.stderr = self._streams
        faulthandler.enable(_STDERR)
        root = logging.getLogger()
        root.handlers[:] = [RecordHandler(self._writer)]
        root.setLevel(self._config.level)
        # Registered before those of the user, so it runs after them.
        atexit.register(self.close)
        _logs.append(self)
        os.register_at_fork(after_in_child=self._writer.start_over_in_child)

    def follow(self, own: LoggingConfig | None) -> None:
        """Log in another way from now on.

        Args:
            own: how, as the deployment says; None: as the instance says.

        Raises:
            OSError: the file cannot be opened in its folder.
        """
        wanted = own or self._default
        # By default each request has its line at the front door, which sees all of it.
        is_asked_for = own is not None or self._default != LoggingConfig()
        self.has_access_lines = is_asked_for and wanted.enable_access_log
        before = self._config
        if wanted == before:
            return
        same_file = (wanted.logs_dir, wanted.max_file_bytes, wanted.max_old_files) == (
            before.logs_dir,
            before.max_file_bytes,
            before.max_old_files,
        )
        file = None if same_file else self._open(wanted)
        self._writer.follow(Lines(self._source, wanted), file, self._show_where)
        self._config = wanted
        logging.getLogger().setLevel(wanted.level)

    def answered(self, what: str, request_id: str, route: str, took_s: Seconds) -> None:
        """Log a request that has ended."""
        self._writer.put(Answered(what, request_id, route, took_s), len(what))

    def tend(self) -> None:
        """See to the size of the file, to which native code may have written."""
        self._writer.tend()

    def close(self) -> None:
        """Write what is left."""
        for stream in self._streams:
            stream.close_line()
        self._writer.close()

    def _on_printed(self, stream: str, text: str) -> None:
        self._writer.put(Printed(stream, text, current.get()), len(text))

    def _open(self, config: LoggingConfig) -> LogFile:
        folder = self._usual.parent if config.logs_dir is None else Path(config.logs_dir)
        return LogFile(
            folder / self._usual.name,
            max_bytes=config.max_file_bytes,
            max_old=config.max_old_files,
            redirected=self._redirected,
            copy=self._copy,
        )

    def _show_where(self, path: Path) -> None:
        """Let those who look for the log in the usual place find it where it is."""
        usual = self._usual
        if path == usual:
            return
        try:
            if usual.exists() and not usual.is_symlink() and usual.stat().st_size:
                usual.replace(old_path(usual, 1))
            usual.unlink(missing_ok=True)
            usual.symlink_to(path)
        except OSError:
            pass  # A file system without links, or no room for one.


def log_of_replica(context: ProcessContext) -> ProcessLog:
    """Begin the log of a replica's process."""
    home, args = context.home, context.args
    replica_id = ReplicaID(context.process_id)
    deployment, _, tag = replica_id.rpartition("#")
    app, _, name = deployment.rpartition("/")
    source = Source(f"{app}_{name}", tag, app, name, replica_id)
    own = args.get("logging_of_deployment")
    log = ProcessLog(
        home,
        replica_log_name(replica_id),
        source,
        logging_of(args),
        None if own is None else msgspec.convert(own, LoggingConfig),
        shown=context.keeps_output,
    )
    sweep(home.logs, home.logs / replica_log_name(replica_id))
    return log


def log_of_system_process(
    context: ProcessContext, name: str, component: str, *, direct: bool = False
) -> ProcessLog:
    """Begin the log of a process that is no replica.

    Args:
        context: of the process.
        name: of its file.
        component: `controller`, `proxy`, …
        direct: each line is in the file before the process goes on.
    """
    component_id = str(os.getpid()) if component == name else name
    log = ProcessLog(
        context.home,
        f"{name}.log",
        Source(component, component_id),
        logging_of(context.args),
        shown=context.keeps_output,
        direct=direct,
    )
    for note in context.notes:
        _log.warning("%s", note)
    return log


def logging_of(args: Mapping[str, Any]) -> LoggingConfig:
    """What the instance says of logging, from the arguments of a process of it."""
    return msgspec.convert(args.get("logging") or {}, LoggingConfig)


def end_log() -> None:
    """Write what is left in a process that ends without exit handlers."""
    for log in _logs:
        log.close()
