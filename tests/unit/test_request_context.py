"""The context of a request, and ids."""

from __future__ import annotations

import uuid

from remora.request_context import RequestContext, new_request_id


class FakeCall:
    def __init__(self) -> None:
        self.cancelled = 0

    def cancel(self) -> None:
        self.cancelled += 1


def test_cancels_the_children_that_have_not_ended_once() -> None:
    context = RequestContext("r")
    ended, running = FakeCall(), FakeCall()
    context.add_child(ended).discard(ended)
    context.add_child(running)
    assert context.cancel_children() == 1
    assert context.cancel_children() == 0
    assert (ended.cancelled, running.cancelled) == (0, 1)


def test_ids_are_random_uuids() -> None:
    ids = {new_request_id() for _ in range(1000)}
    assert len(ids) == 1000
    for text in ids:
        parsed = uuid.UUID(text)
        assert str(parsed) == text
        assert parsed.version == 4
        assert parsed.variant == uuid.RFC_4122
