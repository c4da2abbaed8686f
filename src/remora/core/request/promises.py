"""Whether a request may run twice, by what the code of its replica promises.

Asked only when a replica has gone: nothing of this is on the way of a request that goes well.

Rules: pure.
"""

from __future__ import annotations

import re

from remora.wire.messages import Envelope, HttpHead, Promises

NO_PROMISES = Promises()


def is_repeatable(promises: Promises, envelope: Envelope) -> bool:
    """Whether the method or route that a request goes to was marked as idempotent. Pure."""
    if envelope.http is None:
        return envelope.method in promises.methods
    if promises.routes:
        return _is_repeatable_route(promises, envelope.http)
    return envelope.method in promises.methods


def _is_repeatable_route(promises: Promises, head: HttpHead) -> bool:
    """The first route that matches decides, as it does in the application."""
    path = head.path.removeprefix(head.root_path) or "/"
    for methods, pattern, idempotent in promises.routes:
        if (not methods or head.method in methods) and re.match(pattern, path):
            return idempotent
    return False
