"""Where traces go: every option of it, once.

Users find these in `remora.schema`.

Rules: values and their checks; what traces is in `observe`.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from remora.errors import ConfigError
from remora.options.checks import Named, require_flag, require_number, struct_of

_FIELD = "tracing_config"
_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*[.:][^\W\d]\w*")


class TracingConfig(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, metaclass=Named
):
    """Whether requests are traced by OpenTelemetry, how many of them, and where traces go."""

    #: Nothing is traced, and nothing of it is imported, unless this is true.
    enabled: bool = False
    #: `module:function` that returns a list of OpenTelemetry span processors; empty: spans go into
    #: a file in the folder of the logs.
    exporter_import_path: str = ""
    #: Share of traces that are recorded, where the client has not decided, 0..1.
    sampling_ratio: float = 0.01

    def __post_init__(self) -> None:
        require_flag(f"{_FIELD}.enabled", self.enabled)
        path: object = self.exporter_import_path
        if not isinstance(path, str) or (path and _PATH.fullmatch(path) is None):
            raise ConfigError(
                f"{_FIELD}.exporter_import_path", path, "write module:function, or leave it empty"
            )
        require_number(f"{_FIELD}.sampling_ratio", self.sampling_ratio, low=0, high=1)


def tracing_config(given: TracingConfig | dict[str, Any] | None) -> TracingConfig | None:
    """Turn what a user passes as `tracing_config` into the struct; None stays None. Pure.

    Raises:
        TypeError: neither a dict nor a `TracingConfig`.
        ConfigError: an unknown key, or a value that cannot be right.
    """
    return None if given is None else struct_of(TracingConfig, _FIELD, given)
