"""Classes that are deployed without the `@`: what every checker knows, without any plugin."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

from typing_extensions import assert_type

import remora as serve
from remora.handle import DeploymentHandle, DeploymentResponse, DeploymentResponseGenerator


class Parent:
    async def inherited(self, x: int) -> int:
        return x


class Model(Parent):
    def __init__(self, size: int) -> None:
        self.size = size

    async def predict(self, x: int, *, scale: float = 1.0) -> str:
        return str(x * scale)

    def plain(self, x: int) -> list[int]:
        return [x]

    async def tokens(self, text: str) -> AsyncIterator[bytes]:
        yield text.encode()

    def lines(self) -> Iterator[str]:
        yield ""

    @serve.method(idempotent=True)
    async def marked(self, x: int) -> bytes:
        return bytes(x)

    async def total(self, items: AsyncIterator[int]) -> int:
        return sum([x async for x in items])

    async def __call__(self, x: int) -> float:
        return float(x)


class Other:
    def plain(self) -> int:
        return 1


class Front:
    def __init__(self, model: DeploymentHandle[Model]) -> None:
        self.model = model.method(Model.predict)

    async def __call__(self, x: int) -> str:
        wrong: int = await self.model.remote(x)  # error
        return await self.model.remote(x)


model = serve.deployment(Model)
handle = serve.run(model.bind(3))
assert_type(handle, DeploymentHandle[Model])
assert_type(serve.run(serve.deployment(num_replicas=2)(Model).bind(3)), DeploymentHandle[Model])
assert_type(model.options(name="m").bind(3), serve.Application[Model])

predict = handle.method(Model.predict)
assert_type(predict.remote(1), DeploymentResponse[str])
assert_type(predict.remote(1, scale=2.0).result(), str)
assert_type(predict.options(timeout_s=1).remote(x=1), DeploymentResponse[str])
assert_type(handle.method(Model.plain).remote(1).result(timeout_s=1), list[int])
assert_type(handle.method(Model.marked).remote(1).result(), bytes)
assert_type(handle.method(Model.inherited).remote(1).result(), int)
assert_type(handle.method(Model.__call__).remote(1).result(), float)
assert_type(handle.method(Model.tokens).remote("x"), DeploymentResponseGenerator[bytes])
assert_type(next(handle.method(Model.lines).remote()), str)
assert_type(handle.options(timeout_s=3).method(Model.plain).remote(1), DeploymentResponse[list[int]])

predict.remote("x")  # error
predict.remote(1, 2.0)  # error
predict.remote()  # error
predict.remote(1, speed=2)  # error
handle.method(Model.predikt)  # error
handle.method(Other.plain)  # error
wrong: int = handle.method(Model.predict).remote(1).result()  # error

# An answer as an argument stands for its value; a stream is an iterator.
answer = handle.method(Model.inherited).remote(2)
predict.remote(answer.as_argument())
handle.method(Model.plain).remote(predict.remote(1).as_argument())  # error


async def asynchronous() -> None:
    assert_type(await predict.remote(1), str)
    async for token in handle.method(Model.tokens).remote("x"):
        assert_type(token, bytes)
    async with handle.choose_replica() as selection:
        assert_type(await predict.dispatch(selection, 1), str)
        predict.dispatch(selection, "x")  # error


async def numbers() -> AsyncIterator[int]:
    yield 1


handle.method(Model.total).remote(numbers())
handle.method(Model.total).remote(3)  # error

# The form without types goes on to work.
assert_type(handle.predict.remote(1), Any)  # error[plugin]
assert_type(handle.remote(1), Any)
untyped: DeploymentHandle = serve.get_app_handle("default")
untyped.anything.remote(1, 2, 3).result()
