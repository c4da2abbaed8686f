"""Two bytes on BentoML."""

from __future__ import annotations

import bentoml


@bentoml.service
class Hello:
    """Answers with two bytes."""

    @bentoml.api  # type: ignore[untyped-decorator]
    async def hello(self) -> str:
        """Return two bytes."""
        return "ok"
