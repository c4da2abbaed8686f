"""The smallest useful application: one class, one answer.

remora run server:app
"""

from __future__ import annotations

from starlette.requests import Request

import remora as serve


@serve.deployment
class Greeter:
    def __init__(self, greeting: str) -> None:
        self.greeting = greeting

    async def __call__(self, request: Request) -> str:
        name = request.query_params.get("name", "world")
        return f"{self.greeting}, {name}!"


app = Greeter.bind("Hello")
