"""A Hugging Face pipeline; the model is an argument of the application.

remora run server:build
remora run server:build model=/path/to/a/model
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, Field

import remora as serve


class Arguments(BaseModel):
    """What `remora run server:build key=value …` takes."""

    model: str = "distilbert/distilbert-base-uncased-finetuned-sst-2-english"
    device: str = "cpu"
    replicas: int = Field(default=1, ge=1)


class Text(BaseModel):
    text: str = Field(min_length=1, max_length=10_000)


class Label(BaseModel):
    label: str
    score: float


api = FastAPI(title="Text classification")


# A model on a processor uses all cores for one request; more at a time would only wait.
@serve.deployment(max_ongoing_requests=2)
@serve.ingress(api)
class TextClassifier:
    def __init__(self, model: str, device: str) -> None:
        # Imported here: the process that deploys needs neither torch nor transformers.
        from transformers import pipeline

        self.pipeline: Any = pipeline("text-classification", model=model, device=device)

    def check_health(self) -> None:
        """Runs before the replica takes requests, so the first one finds a warm model."""
        self.pipeline("warm")

    @api.post("/classify")
    def classify(self, body: Text) -> Label:
        [answer] = self.pipeline(body.text, truncation=True)
        return Label(label=answer["label"], score=round(answer["score"], 3))


def build(args: Arguments) -> serve.Application:
    deployment: serve.Deployment = TextClassifier.options(num_replicas=args.replicas)
    return deployment.bind(args.model, args.device)
