"""Classes below `@deployment`: pyright knows them by itself, mypy with the plugin."""

from collections.abc import AsyncIterator

from typing_extensions import assert_type

import remora as serve
from remora.handle import DeploymentResponse, DeploymentResponseGenerator


@serve.deployment
class Model:
    async def predict(self, x: int) -> str:
        return str(x)

    async def tokens(self) -> AsyncIterator[bytes]:
        yield b""


@serve.deployment(num_replicas=2)
class Other:
    def plain(self) -> int:
        return 1


@serve.deployment
def function() -> int:
    return 1


handle = serve.run(Model.bind())
predict = handle.method(Model.func_or_class.predict)
assert_type(predict.remote(1), DeploymentResponse[str])
assert_type(handle.method(Model.func_or_class.tokens).remote(), DeploymentResponseGenerator[bytes])
predict.remote("x")  # error
handle.method(Other.func_or_class.plain)  # error
Model.blind()  # error
Model.options(num_replica=2)  # error[pyright]
serve.run(function.bind()).remote()
assert_type(serve.run(Other.options(name="o").bind()).method(Other.func_or_class.plain).remote().result(), int)
