"""Example requests, which a new replica answers before it gets real ones.

Part of the options of a deployment (`config.py`).
"""

from __future__ import annotations

from typing import Any

import msgspec

from remora.errors import ConfigError
from remora.options.checks import check_keys, require_json, require_number


class WarmupRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One example: an HTTP request, or a call of a method. One of `path` and `call` is given."""

    #: Path below the route prefix, with its query; None: a call.
    path: str | None = None
    method: str = "GET"
    headers: dict[str, str] = {}
    #: Body: any JSON value, or text. None and empty: none.
    json: Any = None
    body: str = ""
    #: Name of the method to call, and what it is called with; any JSON values.
    call: str | None = None
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    #: How often, one after the other, >= 1.
    times: int = 1

    def __str__(self) -> str:
        return f"{self.method} {self.path}" if self.path is not None else f"{self.call}()"


def warmup_requests(given: Any) -> tuple[WarmupRequest, ...]:
    """Turn what a user passes as `warmup_requests` into structs.

    Raises:
        ConfigError: an unknown key, or a value that cannot be right; says which one.
    """
    if not isinstance(given, (list, tuple)):
        raise ConfigError("warmup_requests", given, "must be a list of requests")
    return tuple(_request(f"warmup_requests[{n}]", each) for n, each in enumerate(given))


def _request(field: str, given: Any) -> WarmupRequest:
    if isinstance(given, WarmupRequest):
        given = msgspec.structs.asdict(given)
    if not isinstance(given, dict):
        raise ConfigError(field, given, "must be a dict")
    check_keys(field, given, WarmupRequest.__struct_fields__)
    require_json(field, given)
    try:
        made = msgspec.convert(given, WarmupRequest)
    except msgspec.ValidationError as error:
        raise ConfigError(field, given, str(error)) from None
    if (made.path is None) == (made.call is None):
        raise ConfigError(field, given, "needs either path (over HTTP) or call (a method's name)")
    if made.path is not None and not made.path.startswith("/"):
        raise ConfigError(f"{field}.path", made.path, "begins with '/'")
    if made.json is not None and made.body:
        raise ConfigError(f"{field}.body", made.body, "has no place beside json")
    require_number(f"{field}.times", made.times, low=1, whole=True)
    return made
