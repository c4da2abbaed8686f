"""Many models, two replicas: each model is loaded where it is asked for, and stays while there is room.

remora run server:app
"""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request

import remora as serve

LANGUAGES = {
    "de": {"good": "gut", "morning": "Morgen", "fish": "Fisch"},
    "fr": {"good": "bon", "morning": "matin", "fish": "poisson"},
    "it": {"good": "buono", "morning": "mattina", "fish": "pesce"},
    "nl": {"good": "goed", "morning": "ochtend", "fish": "vis"},
}


class Model:
    """Stands for something large that takes long to load."""

    def __init__(self, language: str) -> None:
        self.words = LANGUAGES[language]

    def translate(self, text: str) -> str:
        return " ".join(self.words.get(word, word) for word in text.split())

    def __del__(self) -> None:
        """Frees what the model holds; runs once, when another model needs the room."""
        self.words = {}


@serve.deployment(num_replicas=2)
class Translator:
    def __init__(self) -> None:
        self.num_loads = 0

    @serve.multiplexed(max_num_models_per_replica=2)
    async def get_model(self, language: str) -> Model:
        if language not in LANGUAGES:
            raise ValueError(f"there is no model {language!r}")
        self.num_loads += 1
        # A real loader reads a file or downloads one: in a thread, so that others go on meanwhile.
        return await asyncio.to_thread(Model, language)

    async def __call__(self, request: Request) -> dict[str, Any]:
        # The id that the client sent in the header serve_multiplexed_model_id.
        language = serve.get_multiplexed_model_id()
        before = self.num_loads
        model = await self.get_model(language)
        text = model.translate((await request.body()).decode())
        return {"text": text, "loaded": self.num_loads > before}


app = Translator.bind()
