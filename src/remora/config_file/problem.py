"""A problem of a config, and the path that leads to it.

Rules: pure; knows no key.
"""

from __future__ import annotations

from dataclasses import dataclass

#: Keys and indexes that lead to a value.
Path = tuple["str | int", ...]


@dataclass(frozen=True)
class Problem:
    """Something that is wrong with a config.

    Attributes:
        path: leads to it.
        message: what, and what to write instead.
    """

    path: Path
    message: str

    def __str__(self) -> str:
        where = path_text(self.path)
        return f"{where}: {self.message}" if where else self.message


def path_text(path: Path) -> str:
    """Write a path as people do: `applications[0].name`. Pure."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text
