"""`handle.predict.remote(...)`: mypy's plugin knows the method; to others it is of any type."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

from typing_extensions import assert_type

import remora as serve
from remora.handle import DeploymentHandle, DeploymentResponse


@serve.deployment
class Model:
    async def predict(self, x: int, *, scale: float = 1.0) -> str:
        return str(x * scale)

    def plain(self) -> list[int]:
        return []

    async def tokens(self) -> AsyncIterator[bytes]:
        yield b""

    def lines(self) -> Iterator[str]:
        yield ""

    @serve.method(idempotent=True)
    async def marked(self) -> int:
        return 1


@serve.deployment
class Front:
    def __init__(self, model: "DeploymentHandle[Model]") -> None:
        self.model = model

    async def __call__(self) -> str:
        return await self.model.predict.remote("x")  # error


handle = serve.run(Model.bind())
assert_type(handle.predict.remote(1, scale=1.5), DeploymentResponse[str])
assert_type(handle.predict.options(timeout_s=2).remote(1).result(), str)
assert_type(handle.plain.remote().result(), list[int])
# What yields is called with `stream=True`, or through `method`.
assert_type(handle.options(stream=True).tokens.remote(), Any)
assert_type(handle.lines, DeploymentHandle[Any])
assert_type(handle.marked.remote().result(), int)
handle.predict.remote("x")  # error
handle.predikt.remote(1)  # error
handle.deployment_name.upper()
