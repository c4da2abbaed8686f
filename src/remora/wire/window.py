"""Windows: how much of a stream may be under way before its reader has taken any of it.

The sender counts down what it sends, the reader counts up what it takes and gives it back in
one CREDIT frame when that is half a window: not with each frame, and long before the sender
runs dry. Both count alike, which is why it is written once, here.

Rules: pure. The counters live with whoever sends or reads.
"""

from __future__ import annotations

#: Large enough for a fast local stream to never run dry, small enough that 1,000 slow readers
#: cost 256 MB at most.
WINDOW_BYTES = 256 * 1024
#: What a frame costs beside its body, so that tiny items are bounded as well.
FRAME_COST_BYTES = 64
#: The window of a sender whom nobody slows down any more, because what it sends is dropped.
UNBOUNDED = 1 << 62


def cost(body_bytes: int) -> int:
    """What a frame with such a body takes of a window."""
    return body_bytes + FRAME_COST_BYTES


def is_grant_due(taken: int) -> bool:
    """Whether a reader that has taken so much since its last grant gives the next one."""
    return taken * 2 >= WINDOW_BYTES
