"""What nodes lack, how often in a row they did, and what was told of it.

Rules: pure but for the log. A node that lacks the same as before is not told of again, and is tried
again after a pause that grows: each try is a new process there.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from remora.types import Seconds

_log = logging.getLogger("remora.engine")

#: Between the first tries; doubled with each that fails.
TRY_NODE_AGAIN_S: Seconds = 5.0
#: Whoever mends a node, or frees a port there, waits no longer than this.
MOST_PAUSE_S: Seconds = 60.0


def pause_s(times: int) -> Seconds:
    """How long to wait after so many failures in a row (1, 2, …). Pure."""
    return float(min(TRY_NODE_AGAIN_S * 2.0 ** min(times - 1, 10), MOST_PAUSE_S))


@dataclass
class _Lack:
    reason: str
    times: int = 1


class Refusals:
    """What nodes lack now."""

    def __init__(self) -> None:
        #: By node, and by what it lacks, as the log says it.
        self._lacks: dict[tuple[str, str], _Lack] = {}

    def note(self, node_id: str, lacks: str, reason: str) -> Seconds:
        """A try has failed: tell what is new of it; returns how long to wait before the next.

        Args:
            node_id: of the node.
            lacks: `takes no processes`, and the like.
            reason: for people.
        """
        known = self._lacks.get((node_id, lacks))
        if known is None or known.reason != reason:
            _log.warning("Node %s %s: %s", node_id[:12], lacks, reason)
        if known is None:
            self._lacks[node_id, lacks] = known = _Lack(reason)
        else:
            known.reason, known.times = reason, known.times + 1
        return pause_s(known.times)

    def is_noted(self, node_id: str, lacks: str) -> bool:
        """Whether a node is known to lack something."""
        return (node_id, lacks) in self._lacks

    def told(self, node_id: str) -> str:
        """Say what a node lacks, for people; empty: nothing. No full stop."""
        return "; ".join(
            f"{lacks}: {lack.reason}"
            for (id_, lacks), lack in self._lacks.items()
            if id_ == node_id
        )

    def clear(self, node_id: str, lacks: str, now: str) -> None:
        """It lacks that no more: tell it, where it was told that it did.

        Args:
            node_id: of the node.
            lacks: as it was noted.
            now: `takes processes now`, and the like.
        """
        if self._lacks.pop((node_id, lacks), None) is not None:
            _log.info("Node %s %s.", node_id[:12], now)

    def forget(self, node_id: str) -> None:
        """The node is gone."""
        for key in [key for key in self._lacks if key[0] == node_id]:
            del self._lacks[key]


def reason_of_error(error: Exception) -> str:
    """Say what an error says in one line without a full stop, to be part of a longer text. Pure."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".:")
