"""Two bytes on LitServe. Run as a script with the port as its only argument."""

from __future__ import annotations

import sys
from typing import Any

import litserve


class Hello(litserve.LitAPI):  # type: ignore[misc]
    """Answers with two bytes."""

    def setup(self, device: str) -> None:
        """Load nothing."""

    def predict(self, request: Any) -> str:
        """Return two bytes (JSON adds its quotes)."""
        return "ok"


if __name__ == "__main__":
    server = litserve.LitServer(Hello(), accelerator="cpu")
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False)
