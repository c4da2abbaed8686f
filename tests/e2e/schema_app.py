"""A FastAPI application with one of everything that a request may carry."""

from __future__ import annotations

import datetime
import enum
import uuid
from typing import Annotated

from fastapi import Cookie, FastAPI, Form, Header, HTTPException, Query, Response
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel, Field

api = FastAPI(title="one of everything")


class Colour(enum.StrEnum):
    red = "red"
    blue = "blue"


class Part(BaseModel):
    name: str = Field(max_length=20)
    weight: float | None = Field(None, ge=0)


class Thing(BaseModel):
    id: uuid.UUID
    made: datetime.date
    colour: Colour
    parts: list[Part] = Field(max_length=3)


@api.get("/things/{thing_id}")
def one(
    thing_id: int,
    colour: Colour | None = None,
    tags: Annotated[list[str] | None, Query(max_length=3)] = None,
    x_token: Annotated[str | None, Header()] = None,
    session: Annotated[str | None, Cookie()] = None,
) -> dict[str, object]:
    if thing_id == 0:
        raise HTTPException(404, "nothing is number 0", headers={"x-reason": "zero"})
    return {
        "id": thing_id,
        "colour": colour,
        "tags": tags,
        "token": x_token,
        "session": session,
    }


@api.post("/things", status_code=201)
async def create(thing: Thing, response: Response) -> Thing:
    response.headers["location"] = f"/things/{thing.id.int % 1000}"
    return thing


@api.put("/things/{thing_id}/form")
async def form(
    thing_id: int, name: Annotated[str, Form()], count: Annotated[int, Form()] = 1
) -> str:
    return f"{thing_id} {name!r} {count}"


@api.delete("/things/{thing_id}", status_code=204)
def delete(thing_id: int) -> None:
    del thing_id


@api.get("/text/{path:path}", response_class=PlainTextResponse)
async def text(path: str, width: Annotated[int, Query(ge=0, le=100)] = 0) -> str:
    return path.rjust(width)[:10_000]
