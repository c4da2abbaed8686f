"""Which application a path belongs to: the longest prefix on whole segments.

Rules: pure; a table is built once for each change of routes and asked for every request.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, TypeVar

T = TypeVar("T")


def normalise(prefix: str) -> str:
    """Cut the trailing slash: `/a/` and `/a` are the same prefix; `/` stays."""
    return prefix.rstrip("/") or "/"


class RouteTable(Generic[T]):
    """Longest-prefix match.

    Invariants: a match ends at a segment boundary (`/a` takes `/a`, `/a/` and `/a/b`, not
    `/ab`); adding a route changes only the paths below it.
    """

    __slots__ = ("_ordered", "_root")

    def __init__(self, routes: Mapping[str, T]) -> None:
        """Build a table.

        Args:
            routes: what each prefix leads to; prefixes begin with `/`.
        """
        ordered = sorted(routes.items(), key=lambda route: len(normalise(route[0])), reverse=True)
        self._root: tuple[str, T] | None = None
        self._ordered: list[tuple[str, str, tuple[str, T]]] = []
        for prefix, target in ordered:
            exact = normalise(prefix)
            if exact == "/":
                self._root = (exact, target)
            else:
                self._ordered.append((exact, exact + "/", (exact, target)))

    def match(self, path: str) -> tuple[str, T] | None:
        """Find the route of a path: its prefix and what it leads to; None: no route."""
        for exact, below, route in self._ordered:
            if path.startswith(below) or path == exact:
                return route
        return self._root
