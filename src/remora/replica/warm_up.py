"""Example requests (`warmup_requests`), run by a replica before it joins.

Rules: knows the user's code and nothing of the wire. An example that fails fails the start, with
the user's traceback.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

from remora.errors import ReplicaStartError
from remora.options.warmup import WarmupRequest
from remora.replica.methods import MethodKind, in_thread
from remora.replica.user_code import UserCode

#: Of an answer that says what went wrong.
_SHOWN_BYTES = 300


async def warm_up(code: UserCode, examples: tuple[WarmupRequest, ...], root_path: str) -> None:
    """Run all examples, one after the other.

    Args:
        code: whose requests these are.
        examples: what is asked.
        root_path: the application's route prefix; empty: none.

    Raises:
        ReplicaStartError: one was answered with a status of 400 or above.
        Exception: what the user's code raised.
    """
    for example in examples:
        for _ in range(example.times):
            if example.call is not None:
                await _drain(await _run(code, example.call, example.args, example.kwargs))
            else:
                await _ask(code, example, root_path)


async def _run(code: UserCode, name: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
    method = code.methods.find(name)
    if method.kind is MethodKind.SYNC:
        return await in_thread(method.function, *args, **kwargs)
    if method.kind is MethodKind.ASYNC:
        return await method.function(*args, **kwargs)
    return method.function(*args, **kwargs)


async def _drain(result: Any) -> None:
    """Read what a generator yields to its end."""
    if isinstance(result, AsyncIterator):
        async for _ in result:
            pass
    elif isinstance(result, Iterator):
        await in_thread(lambda: [None for _ in result])


async def _ask(code: UserCode, example: WarmupRequest, root_path: str) -> None:
    exchange = _Exchange(example, root_path, code)
    if code.asgi_app is not None:
        await code.asgi_app(exchange.scope, exchange.receive, exchange.send)
    else:
        args = []
        if code.methods.num_http_parameters:
            from starlette.requests import Request

            request = Request(exchange.scope, exchange.receive)
            # A plain `def` cannot await the body, so it finds it read.
            await request.body()
            args = [request]
        result = await _run(code, "__call__", args, {})
        if callable(result) and hasattr(result, "raw_headers"):
            await result(exchange.scope, exchange.receive, exchange.send)
        else:
            await _drain(result)
    if exchange.status >= 400:
        answer = exchange.answer[:_SHOWN_BYTES].decode(errors="replace")
        raise ReplicaStartError(
            f"A replica of {code.deployment} could not start: the warm-up request {example} was "
            f"answered with {exchange.status}: {answer}"
        )


class _Exchange:
    """One HTTP request as an ASGI application sees it, and what it answers."""

    def __init__(self, example: WarmupRequest, root_path: str, code: UserCode) -> None:
        self.status = 200
        self.answer = b""
        path, _, query = (example.path or "").partition("?")
        prefix = root_path.rstrip("/")
        body = example.body.encode()
        headers = {name.lower(): value for name, value in example.headers.items()}
        if example.json is not None:
            body = json.dumps(example.json).encode()
            headers.setdefault("content-type", "application/json")
        headers.setdefault("host", "localhost")
        headers.setdefault("content-length", str(len(body)))
        self._messages = [{"type": "http.request", "body": body, "more_body": False}]
        self.scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": example.method.upper(),
            "scheme": "http",
            "path": prefix + path,
            "raw_path": (prefix + path).encode(),
            "query_string": query.encode(),
            "root_path": prefix,
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
            "client": None,
            "server": None,
            "state": dict(code.lifespan.state) if code.lifespan is not None else {},
        }

    async def receive(self) -> dict[str, Any]:
        """The request; after it nothing comes, and the client stays."""
        if self._messages:
            return self._messages.pop()
        return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]

    async def send(self, message: Any) -> None:
        """Keep the status and the beginning of the answer."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
        elif len(self.answer) < _SHOWN_BYTES:
            self.answer += bytes(message.get("body", b""))
