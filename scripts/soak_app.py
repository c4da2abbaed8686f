"""What `soak.py` serves: a little of everything that a request can meet."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import StreamingResponse

import remora as serve

api = FastAPI()


class Order(BaseModel):
    """The body of a POST."""

    name: str
    amounts: list[float]


class Bill(BaseModel):
    """Its answer."""

    name: str
    total: float


class PlainCode:
    """Answers at once, in parts, late, or not at all."""

    async def __call__(self, request: Request) -> Any:
        """Do what the last word of the path says."""
        match request.url.path.rpartition("/")[2]:
            case "stream":
                return StreamingResponse(_parts())
            case "error":
                raise ValueError("on purpose")
            case "slow":
                await asyncio.sleep(30)
        return {"path": request.url.path}

    async def add(self, left: int, right: int) -> int:
        """Answer a call through a handle."""
        return left + right

    async def count(self, number: int) -> AsyncIterator[int]:
        """Answer with a stream."""
        for value in range(number):
            yield value

    async def fail(self) -> None:
        """Raise."""
        raise ValueError("on purpose")

    async def wait(self) -> None:
        """Take longer than anybody waits."""
        await asyncio.sleep(30)

    def block(self, seconds: float) -> str:
        """Work in a thread."""
        time.sleep(seconds)
        return "done"


async def _parts() -> AsyncIterator[str]:
    for number in range(20):
        yield f"{number} "
        await asyncio.sleep(0)


class OrdersCode:
    """Takes orders, and has the sum done by another deployment."""

    def __init__(self, plain: Any) -> None:
        self.plain = plain

    @api.post("/orders")
    async def order(self, order: Order) -> Bill:
        """Add up."""
        total = 0
        for amount in order.amounts:
            total = await self.plain.add.remote(total, amount)
        return Bill(name=order.name, total=total)


Plain = serve.deployment(name="Plain", num_replicas=2, max_ongoing_requests=200)(PlainCode)
Orders = serve.deployment(name="Orders", max_ongoing_requests=200)(serve.ingress(api)(OrdersCode))

plain = Plain.bind()
orders = Orders.bind(Plain.options(num_replicas=1).bind())
