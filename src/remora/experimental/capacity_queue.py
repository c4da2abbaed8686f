"""The queue of tokens that `CapacityQueueRouter` has on Ray Serve, and does without here."""

from __future__ import annotations

from typing import ClassVar

from remora.options.checks import require_number

__all__ = ["CapacityQueue"]


class CapacityQueue:
    """Accepted among `deployment_actors`, so that applications need not be changed.

    Replicas count their slots themselves and tell of free ones (`CapacityQueueRouter`). A process
    that hands out tokens would be one more hop and one more thing that can fail, so none is
    started, and `get_deployment_actor` finds none.
    """

    needs_no_process: ClassVar[bool] = True

    def __init__(self, acquire_timeout_s: float = 0.5, token_ttl_s: float = 5.0) -> None:
        """Check the two arguments; nothing reads them.

        Raises:
            ConfigError: one of them is not above 0.
        """
        require_number("acquire_timeout_s", acquire_timeout_s, above=0)
        require_number("token_ttl_s", token_ttl_s, above=0)
