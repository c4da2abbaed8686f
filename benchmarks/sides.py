"""Who is measured: the limit, Remora, and the peers, each with a target for each scene.

A scene is one piece of work: `hello` (a handler that returns two bytes), `fastapi` (a FastAPI
endpoint that returns a dict), `sse` (event streams), `handle` (calls from a Python process to a
deployment), `batch` (such calls to a batched model), `models` (such calls to many models).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from benchmarks.targets import DriverTarget, HttpTarget, Launch, Target, free_port

LIMIT = "limit"
REMORA = "remora"
#: Remora with Ray as its engine.
ON_RAY = "remora-ray"
_BIN = Path(sys.executable).parent
#: What makes the same commands and scripts run on a Ray of their own.
_RAY_ENVIRONMENT = {"REMORA_ADDRESS": "local", "RAY_USAGE_STATS_ENABLED": "0"}

MakeTarget = Callable[[Path], Target]
Environment = Mapping[str, str]
#: Importing torch takes seconds, and so does the start of Ray.
_READY_TIMEOUT_S = 60.0
NOTHING: Environment = MappingProxyType({})


@dataclass(frozen=True)
class Side:
    """One column of the table.

    Attributes:
        name: as in the table.
        scenes: for each scene it can do, how to make its target in a scratch folder.
    """

    name: str
    scenes: Mapping[str, MakeTarget]


def _bare_uvicorn(module: str) -> MakeTarget:
    """Uvicorn with its fastest parser and loop and no access log: what a server costs at least."""

    def launch(port: int, folder: Path) -> Launch:
        return Launch(
            [
                *[str(_BIN / "uvicorn"), f"benchmarks.apps.{module}:app", "--port", str(port)],
                *["--http", "httptools", "--loop", "uvloop"],
                *["--no-access-log", "--log-level", "warning"],
            ]
        )

    return lambda scratch: HttpTarget(f"uvicorn-{module}", launch, scratch)


def _remora_run(module: str, engine: Environment) -> MakeTarget:
    """The command of a user, with every default of a user."""

    def launch(port: int, folder: Path) -> Launch:
        return Launch(
            [str(_BIN / "remora"), "run", f"benchmarks.apps.{module}:app", "--port", str(port)],
            {"REMORA_HOME": str(folder / "home"), **engine},
        )

    return lambda scratch: HttpTarget(
        f"remora-{module}", launch, scratch, ready_timeout_s=_READY_TIMEOUT_S
    )


def _limit_driver(scratch: Path) -> Target:
    def launch(descriptor: int, folder: Path) -> Launch:
        argv = [sys.executable, "-m", "benchmarks.drivers.limits"]
        return Launch([*argv, "--orders", str(descriptor), "--folder", str(folder)])

    return DriverTarget("limits", launch, scratch)


def handle_driver(
    python: str, serve: str, app: str, ready_timeout_s: float, more: Environment = NOTHING
) -> MakeTarget:
    """Return a maker of the driver that calls a deployment through its handle.

    Args:
        python: the interpreter to run it with.
        serve: module with the Serve API (`remora` or `ray.serve`).
        app: `module:attribute` of the application.
        ready_timeout_s: for instance and application together.
        more: environment variables.
    """

    def launch(descriptor: int, folder: Path) -> Launch:
        argv = [python, "-m", "benchmarks.drivers.handle", "--orders", str(descriptor)]
        return Launch(
            [*argv, "--serve", serve, "--app", app, "--port", str(free_port())],
            {"REMORA_HOME": str(folder / "home"), **more},
        )

    return lambda scratch: DriverTarget(
        f"{serve}-driver", launch, scratch, ready_timeout_s=ready_timeout_s
    )


def _models_driver(scratch: Path) -> Target:
    def launch(descriptor: int, folder: Path) -> Launch:
        argv = [sys.executable, "-m", "benchmarks.drivers.models", "--orders", str(descriptor)]
        home = {"REMORA_HOME": str(folder / "home")}
        return Launch([*argv, "--port", str(free_port())], home)

    return DriverTarget("remora-models", launch, scratch, ready_timeout_s=_READY_TIMEOUT_S)


def _batch_driver(*words: str, engine: Environment = NOTHING) -> MakeTarget:
    """The same application for both sides, because the limit is another setting of it."""

    def launch(descriptor: int, folder: Path) -> Launch:
        argv = [sys.executable, "-m", "benchmarks.drivers.batches", "--orders", str(descriptor)]
        return Launch(
            [*argv, "--port", str(free_port()), *words],
            {"REMORA_HOME": str(folder / "home"), **engine},
        )

    return lambda scratch: DriverTarget(
        "batch-driver", launch, scratch, ready_timeout_s=_READY_TIMEOUT_S
    )


def _grpc_driver(serve: str, engine: Environment = NOTHING) -> MakeTarget:
    """The same client on gRPC's own server, or on Remora."""

    def launch(descriptor: int, folder: Path) -> Launch:
        argv = [sys.executable, "-m", "benchmarks.drivers.grpc", "--orders", str(descriptor)]
        return Launch(
            [*argv, "--serve", serve, "--port", str(free_port())],
            {"REMORA_HOME": str(folder / "home"), **engine},
        )

    return lambda scratch: DriverTarget(
        f"grpc-{serve}", launch, scratch, ready_timeout_s=_READY_TIMEOUT_S
    )


LIMIT_SIDE = Side(
    LIMIT,
    {
        "hello": _bare_uvicorn("bare_hello"),
        "fastapi": _bare_uvicorn("api"),
        "sse": _bare_uvicorn("sse"),
        "handle": _limit_driver,
        "grpc": _grpc_driver("bare"),
        "batch": _batch_driver("--best"),
    },
)


def _remora(name: str, engine: Environment, **more: MakeTarget) -> Side:
    echo = "benchmarks.apps.remora_echo:app"
    return Side(
        name,
        {
            "hello": _remora_run("remora_hello", engine),
            "fastapi": _remora_run("remora_api", engine),
            "sse": _remora_run("remora_sse", engine),
            "handle": handle_driver(sys.executable, "remora", echo, _READY_TIMEOUT_S, engine),
            "grpc": _grpc_driver("remora", engine),
            "batch": _batch_driver(engine=engine),
            **more,
        },
    )


# How many of its requests a cache hits is not the engine's doing.
REMORA_SIDE = _remora(REMORA, NOTHING, models=_models_driver)
RAY_SIDE = _remora(ON_RAY, _RAY_ENVIRONMENT)
