"""Deployments that call deployments: in a chain, at the same time, and as a stream.

remora run server:app
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any

from starlette.requests import Request
from starlette.responses import StreamingResponse

import remora as serve
from remora.handle import DeploymentHandle


@serve.deployment
class Tokenizer:
    """Text to words."""

    def split(self, text: str) -> list[str]:
        return re.findall(r"[a-z]+", text.lower())


@serve.deployment
class Statistics:
    """A first model: which words matter."""

    def top(self, words: list[str], count: int) -> dict[str, int]:
        return dict(Counter(words).most_common(count))


@serve.deployment
class Sentiment:
    """A second model: how the words sound."""

    def __init__(self, good: set[str], bad: set[str]) -> None:
        self.good, self.bad = good, bad

    def score(self, words: list[str]) -> int:
        return sum(word in self.good for word in words) - sum(word in self.bad for word in words)


@serve.deployment
class Speller:
    """A model that produces its answer piece by piece."""

    def spell(self, words: list[str]) -> Iterator[str]:
        for word in words:
            yield "-".join(word)


@serve.deployment
class Reader:
    """The ingress: takes the request, asks the others."""

    def __init__(
        self,
        tokenizer: DeploymentHandle,
        statistics: DeploymentHandle,
        sentiment: DeploymentHandle,
        speller: DeploymentHandle,
    ) -> None:
        self.tokenizer = tokenizer
        self.statistics = statistics
        self.sentiment = sentiment
        self.speller = speller

    async def __call__(self, request: Request) -> Any:
        text = (await request.body()).decode()
        if request.url.path == "/spell":
            return StreamingResponse(self.spell(text), media_type="text/plain")
        # Not awaited: the answer goes straight into the next calls, which wait for it there.
        words = self.tokenizer.split.remote(text)
        top, score = await asyncio.gather(
            self.statistics.top.remote(words, count=2), self.sentiment.score.remote(words)
        )
        return {"top": top, "score": score}

    async def spell(self, text: str) -> AsyncIterator[str]:
        words = await self.tokenizer.split.remote(text)
        async for piece in self.speller.options(stream=True).spell.remote(words):
            yield f"{piece}\n"


app = Reader.bind(
    Tokenizer.bind(),
    Statistics.bind(),
    Sentiment.bind(good={"fine", "happy"}, bad={"grim", "sad"}),
    Speller.bind(),
)
