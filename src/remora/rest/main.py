"""The process of the REST API: a server on sockets that are handed to it, until it is told to end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import tempfile
from pathlib import Path

import uvicorn

from remora import __version__
from remora.control.client import ControlClient
from remora.engine.base import ProcessContext
from remora.errors import InstanceError
from remora.home import Home
from remora.observe.logs import log_of_system_process
from remora.rest.app import make_app
from remora.rest.guard import Rules, is_loopback

#: Connections at a time, idle ones too; the server itself turns further ones away, with 503.
_MAX_CONNECTIONS = 512


def main(context: ProcessContext) -> None:
    """Entry point of the process."""
    log_of_system_process(context, "admin", "admin")
    asyncio.run(_serve(context))


async def _serve(context: ProcessContext) -> None:
    host = str(context.args.get("host") or "127.0.0.1")
    rules = Rules(host, "" if is_loopback(host) else token_of(context.home))
    app = make_app(
        lambda: ControlClient(context.home),
        dict(context.args.get("options", {})),
        rules,
        __version__,
    )
    config = uvicorn.Config(
        app,
        lifespan="off",
        # Who asks for a WebSocket is answered as anybody else is.
        ws="none",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=_MAX_CONNECTIONS,
        timeout_graceful_shutdown=1,
    )
    await uvicorn.Server(config).serve(sockets=list(context.sockets.values()))


def token_of(home: Home) -> str:
    """Return the token of an instance; it is made when it is first needed.

    Raises:
        InstanceError: its file is empty.
        OSError: it can be neither read nor made.
    """
    path = token_file(home)
    if not path.exists():
        _make_token(path)
    token = path.read_text(encoding="utf-8").strip()
    if not token:
        raise InstanceError(
            f"{path} is empty: write a token into it, or remove it to get a new one."
        )
    return token


def _make_token(path: Path) -> None:
    """Put a file there that has all of a token, unless another process was quicker."""
    fd, made = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            file.write(f"{secrets.token_urlsafe(32)}\n")
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(made, path)
    finally:
        Path(made).unlink()


def token_file(home: Home) -> Path:
    """Where the token is: in the state folder, which only this user reads."""
    return home.root / "admin-token"
