"""What the tests of the REST API deploy. Imported by builders and replicas."""

from __future__ import annotations

from typing import Any

import remora as serve


@serve.deployment
class Words:
    async def greeting(self) -> Any:
        return await serve.get_deployment_handle("Greeter", "rest").tone.remote()


@serve.deployment
class Greeter:
    def __init__(self, words: Any) -> None:
        self.words = words

    async def __call__(self, request: Any) -> Any:
        return await self.words.greeting.remote()

    def tone(self) -> str:
        return "hello"


app = Greeter.bind(Words.bind())
