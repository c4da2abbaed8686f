"""The options of `@batch`, checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Literal

from remora.errors import ConfigError

WaitPolicy = Literal["adaptive", "always"]


@dataclass
class BatchOptions:
    """How calls are gathered. `remora.batch` says what each option means.

    Raises:
        TypeError: an option of another type.
        ConfigError: a value that cannot be right (a `ValueError`).
    """

    max_batch_size: int = 10
    batch_wait_timeout_s: float = 0.01
    max_concurrent_batches: int = 1
    batch_size_fn: Callable[[list[Any]], int] | None = None
    key_fn: Callable[[Any], Hashable] | None = None
    wait_policy: WaitPolicy = "adaptive"

    def __post_init__(self) -> None:
        self.max_batch_size = _count("max_batch_size", self.max_batch_size)
        self.max_concurrent_batches = _count("max_concurrent_batches", self.max_concurrent_batches)
        self.batch_wait_timeout_s = _seconds("batch_wait_timeout_s", self.batch_wait_timeout_s)
        for name in ("batch_size_fn", "key_fn"):
            value = getattr(self, name)
            if value is not None and not callable(value):
                raise TypeError(f"{name} must be a function or None, not {value!r}")
        if self.wait_policy not in ("adaptive", "always"):
            raise ConfigError("wait_policy", self.wait_policy, "'adaptive' or 'always'")


def _count(name: str, value: object) -> int:
    """A whole number from 1 on; a float that is one is taken."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, not {value!r}")
    if value < 1:
        raise ConfigError(name, value, "it must be at least 1")
    return value


def _seconds(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of seconds, not {value!r}")
    if not 0 <= value < math.inf:
        raise ConfigError(name, value, "it must be a finite number of seconds from 0 on")
    return float(value)
