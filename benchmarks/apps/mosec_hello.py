"""Two bytes on mosec. Run as a script; it reads its own flags (`--port`, `--path`)."""

from __future__ import annotations

from mosec import Server, Worker


class Hello(Worker):  # type: ignore[misc]
    """Answers with two bytes and neither parses nor encodes JSON."""

    def deserialize(self, data: bytes) -> bytes:
        """Leave the body as it is."""
        return data

    def serialize(self, data: bytes) -> bytes:
        """Leave the answer as it is."""
        return data

    def forward(self, data: bytes) -> bytes:
        """Return two bytes."""
        return b"ok"


if __name__ == "__main__":
    server = Server()
    server.append_worker(Hello)
    server.run()
