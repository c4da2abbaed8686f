"""Something large that replicas share, in a module of its own so that other processes find it."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path

#: Bytes of the model.
SIZE = 100 * 1024 * 1024


@dataclass
class Model:
    weights: bytearray
    loaded_by: int


def load() -> Model:
    # Filled with something: pages that were never written would cost nothing anyway.
    return Model(bytearray(b"\1") * SIZE, os.getpid())


def fail() -> None:
    raise OSError("no such model")


def hang_once() -> None:
    mark = Path(os.environ["HANG_ONCE"])
    if not mark.exists():
        mark.touch()
        threading.Event().wait()


def die() -> None:
    os.kill(os.getpid(), 9)
