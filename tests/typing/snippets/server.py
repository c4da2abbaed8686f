"""An application whose stubs are made in a test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import remora as serve
from remora.handle import DeploymentHandle

if TYPE_CHECKING:
    from decimal import Decimal


@dataclass
class Point:
    x: int


class Model:
    def predict(self, point: Point, /, mode: Literal["fast", "good"] = "fast", *, k: int | None = None) -> list[Point]:
        return [point]

    async def tokens(self, text: Annotated[str, "any"]) -> AsyncIterator[bytes]:
        yield b""

    async def apply(self, f: Callable[[int], str], *args: int, **kwargs: dict[str, tuple[int, ...]]) -> None: ...

    @staticmethod
    def fixed(x: int) -> int:
        return x

    def hidden(self, x: Decimal) -> Decimal:
        return x

    def bare(self, x, y=1):  # type: ignore[no-untyped-def]
        return x

    def _private(self) -> None: ...

    async def __call__(self, x: float) -> str:
        return ""


class Front:
    def __init__(self, model: DeploymentHandle[Model]) -> None: ...

    async def __call__(self, request: Any) -> str:
        return ""


app = serve.deployment(Front).bind(serve.deployment(name="My-Model")(Model).bind())
