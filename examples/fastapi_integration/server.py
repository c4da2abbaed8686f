"""A FastAPI application on replicas: typed routes, errors, a dependency, a lifespan, a stream.

remora run server:app
http://127.0.0.1:8000/docs
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

import remora as serve

WORDS = {
    "de": {"good": "gut", "morning": "Morgen", "fish": "Fisch"},
    "fr": {"good": "bon", "morning": "matin", "fish": "poisson"},
}


class Text(BaseModel):
    text: str = Field(min_length=1, max_length=1000, examples=["Good morning"])
    to: str = Field(examples=["de", "fr"])


class Translation(BaseModel):
    text: str
    to: str
    unknown: list[str] = Field(description="words left as they were")


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[dict[str, object]]:
    """Runs on each replica: before its first request, and after its last one."""
    yield {"dictionaries": WORDS}


api = FastAPI(title="Translator", lifespan=lifespan)


def dictionaries(request: Request) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = request.state.dictionaries
    return found


Dictionaries = Annotated[dict[str, dict[str, str]], Depends(dictionaries)]


@api.get("/languages")
def languages(known: Dictionaries) -> list[str]:
    """A route of the app itself: it needs nothing of the deployment's."""
    return sorted(known)


@serve.deployment(num_replicas=2)
@serve.ingress(api)
class Translator:
    def __init__(self, punctuation: str) -> None:
        self.punctuation = punctuation

    def words(self, text: str) -> list[str]:
        return [word.strip(self.punctuation) for word in text.lower().split()]

    @api.post("/translate")
    async def translate(self, body: Text, known: Dictionaries) -> Translation:
        if body.to not in known:
            raise HTTPException(404, f"no dictionary for {body.to!r}; there are {sorted(known)}")
        words = self.words(body.text)
        dictionary = known[body.to]
        return Translation(
            text=" ".join(dictionary.get(word, word) for word in words),
            to=body.to,
            unknown=[word for word in words if word not in dictionary],
        )

    @api.get("/stream")
    async def stream(
        self, known: Dictionaries, text: str, to: Annotated[str, Query()] = "de"
    ) -> StreamingResponse:
        async def pieces() -> AsyncIterator[str]:
            for word in self.words(text):
                yield known[to].get(word, word) + "\n"

        return StreamingResponse(pieces(), media_type="text/plain")


app = Translator.bind(punctuation=".,;:!?")
