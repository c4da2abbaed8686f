"""How processes log: every option of it, once.

Users find these in `remora.schema`. They stand here because `DeploymentConfig` has them as a part.

Rules: values and their checks; what logs is in `observe`.
"""

from __future__ import annotations

import logging
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import force_setattr

from remora.errors import ConfigError
from remora.options.checks import (
    Named,
    nearest,
    require_flag,
    require_number,
    require_text,
    struct_of,
)

_FIELD = "logging_config"
#: Attributes of a `logging.LogRecord` that lines may have.
ATTRIBUTES = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


class EncodingType(StrEnum):
    """How a line is written."""

    TEXT = "TEXT"
    JSON = "JSON"


class LoggingConfig(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, metaclass=Named
):
    """How the processes of a deployment, an application or a whole instance log."""

    #: `TEXT`, or `JSON`: one object on each line.
    encoding: str = "TEXT"
    #: Name or number of a level of `logging`; lines below it are not written.
    log_level: str | int = "INFO"
    #: Folder of the files of replicas; None: `logs` in the state folder.
    logs_dir: str | None = None
    #: A line for each request: at the front door, and in replicas for which this is set.
    enable_access_log: bool = True
    #: Attributes of `logging.LogRecord` that each line has besides.
    additional_log_standard_attrs: list[str] = []
    #: A file of this size is put aside, >= 4096.
    max_file_bytes: int = 20 * 1024 * 1024
    #: So many of them are kept, >= 0.
    max_old_files: int = 4

    def __post_init__(self) -> None:
        encoding: object = self.encoding
        if encoding not in EncodingType.__members__:
            raise ConfigError(f"{_FIELD}.encoding", encoding, "must be 'TEXT' or 'JSON'")
        force_setattr(self, "encoding", str(encoding))
        force_setattr(self, "log_level", _level_name(self.log_level))
        allowed = "must be the path of a folder, or None"
        require_text(f"{_FIELD}.logs_dir", self.logs_dir, allowed)
        require_flag(f"{_FIELD}.enable_access_log", self.enable_access_log)
        self._check_attributes()
        require_number(f"{_FIELD}.max_file_bytes", self.max_file_bytes, low=4096, whole=True)
        require_number(f"{_FIELD}.max_old_files", self.max_old_files, low=0, whole=True)

    def _check_attributes(self) -> None:
        field = f"{_FIELD}.additional_log_standard_attrs"
        given: object = self.additional_log_standard_attrs
        if not isinstance(given, (list, tuple)):
            raise ConfigError(field, given, "must be a list of names")
        for name in given:
            if name not in ATTRIBUTES:
                hint = nearest(str(name), ATTRIBUTES)
                raise ConfigError(field, name, f"is no attribute of a logging.LogRecord.{hint}")
        force_setattr(self, "additional_log_standard_attrs", list(dict.fromkeys(given)))

    @property
    def level(self) -> int:
        """The number of `log_level`."""
        return logging.getLevelNamesMapping()[str(self.log_level)]


def _level_name(level: object) -> str:
    """The name of a level that is given by name or number.

    Raises:
        ConfigError: there is no such level.
    """
    names = logging.getLevelNamesMapping()
    name: object = level
    if isinstance(level, int) and not isinstance(level, bool):
        name = logging.getLevelName(level)
    elif isinstance(level, str):
        name = level.upper()
    if not isinstance(name, str) or name not in names:
        hint = nearest(str(level).upper(), names)
        raise ConfigError(
            f"{_FIELD}.log_level", level, f"must be one of {', '.join(names)}, or its number.{hint}"
        )
    return name


def logging_config(given: LoggingConfig | dict[str, Any] | None) -> LoggingConfig | None:
    """Turn what a user passes as `logging_config` into the struct; None stays None.

    Raises:
        TypeError: neither a dict nor a `LoggingConfig`.
        ConfigError: an unknown key, or a value that cannot be right.
    """
    return None if given is None else struct_of(LoggingConfig, _FIELD, given)


def with_absolute_folder(config: LoggingConfig | None) -> LoggingConfig | None:
    """The same for processes that work in another folder."""
    if config is None or config.logs_dir is None:
        return config
    folder = str(Path(config.logs_dir).expanduser().absolute())
    return msgspec.structs.replace(config, logs_dir=folder)
