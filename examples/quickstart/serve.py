"""Four deployments behind a typed HTTP API: a preparing step, two models, and the front.

remora run serve:app
http://127.0.0.1:8000/docs
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import FastAPI
from pydantic import BaseModel, Field

import remora as serve
from remora.handle import DeploymentHandle

Centimetres = Annotated[float, Field(gt=0, le=30, description="in centimetres")]


class Flower(BaseModel):
    """What was measured on one iris. The defaults are those of a typical *versicolor*."""

    sepal_length: Centimetres = 5.9
    sepal_width: Centimetres = 2.8
    petal_length: Centimetres = 4.3
    petal_width: Centimetres = 1.3


class Prediction(BaseModel):
    """What the models make of it."""

    species: str
    confidence: float = Field(description="mean of the models' probabilities for this species")
    votes: dict[str, str] = Field(description="the species that each model would name")


@serve.deployment
class Features:
    """The steps before and after the models: flower to row of numbers, numbers to names."""

    def __init__(self) -> None:
        from sklearn.datasets import load_iris

        self.names = [str(name) for name in load_iris().target_names]

    def prepare(self, flower: Flower) -> list[list[float]]:
        return [[flower.sepal_length, flower.sepal_width, flower.petal_length, flower.petal_width]]

    def decide(self, probabilities: dict[str, list[float]]) -> Prediction:
        mean = [sum(column) / len(column) for column in zip(*probabilities.values(), strict=True)]
        return Prediction(
            species=self.names[mean.index(max(mean))],
            confidence=round(max(mean), 2),
            votes={model: self.names[p.index(max(p))] for model, p in probabilities.items()},
        )


@serve.deployment(num_replicas=2)
class Classifier:
    """A scikit-learn model, trained when its replica starts."""

    def __init__(self, kind: str) -> None:
        # Imported here, so that only the processes that compute pay for it.
        from sklearn.datasets import load_iris
        from sklearn.ensemble import RandomForestClassifier
        from sklearn.linear_model import LogisticRegression

        models: dict[str, Any] = {
            "linear": LogisticRegression(max_iter=500),
            "forest": RandomForestClassifier(n_estimators=25, random_state=0),
        }
        data = load_iris()
        self.model = models[kind].fit(data.data, data.target)

    def probabilities(self, rows: list[list[float]]) -> list[float]:
        return [float(p) for p in self.model.predict_proba(rows)[0]]


api = FastAPI(title="Iris", description="Which iris is it?")


@serve.deployment
@serve.ingress(api)
class Front:
    """The HTTP API. It owns no model: it asks the others, both models at the same time."""

    def __init__(self, features: DeploymentHandle, **models: DeploymentHandle) -> None:
        self.features = features
        self.models = models

    @api.post("/predict", summary="Name the species of a flower")
    async def predict(self, flower: Flower) -> Prediction:
        rows = await self.features.prepare.remote(flower)
        answers = await asyncio.gather(
            *(model.probabilities.remote(rows) for model in self.models.values())
        )
        decision: Prediction = await self.features.decide.remote(
            dict(zip(self.models, answers, strict=True))
        )
        return decision

    @api.get("/", summary="Name the species of the sample flower")
    async def sample(self) -> Prediction:
        return await self.predict(Flower())


app = Front.bind(
    Features.bind(),
    linear=Classifier.options(name="Linear", num_replicas=1).bind("linear"),
    forest=Classifier.options(name="Forest").bind("forest"),
)
