"""What Ray is given as the class of an actor.

Ray looks each of its methods up by name on the node where the actor is to be. So this class stays as
it is: with it another version of Remora on a node can say that it is another one. What the methods do
is in `process.py`.
"""

from __future__ import annotations


class Actor:
    """One process. Methods are called by name, through Ray."""

    def __init__(self, request: bytes) -> None:
        """Make it from a `ProcessRequest`."""
        from remora.engine.ray.process import ProcessActor

        self._process = ProcessActor(request)

    def __repr__(self) -> str:
        """What Ray writes in front of each line that this process prints."""
        return repr(self._process)

    def begin(self) -> bytes:
        """Open the sockets, load the entry point."""
        return self._process.begin()

    def run(self) -> None:
        """Run the entry point until it returns."""
        self._process.run()

    def ended(self) -> tuple[str, bool]:
        """How `run` ended: the reason, and whether it was status 0."""
        return self._process.ended()
