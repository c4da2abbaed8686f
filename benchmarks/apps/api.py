"""The FastAPI application: run as it is by bare uvicorn, as an ingress by Remora and Ray Serve."""

from __future__ import annotations

from fastapi import FastAPI

app = FastAPI()


@app.get("/")
async def read() -> dict[str, str]:
    """Return a dict."""
    return {"message": "ok"}
