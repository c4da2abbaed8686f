"""The driver's end of the conversation with the harness.

One JSON line each way: the driver says `{"value": 0}` when it is ready, then answers each order
`{"operation": name, "duration_s": seconds, ...}` with `{"value": figure}` or `{"error": text}`.
The end of the stream means stop. Standard output is left to the libraries being measured.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import traceback
from collections.abc import Awaitable, Callable, Mapping

Operation = Callable[..., Awaitable[float]]


async def obey(descriptor: int, operations: Mapping[str, Operation]) -> None:
    """Serve orders from the socket `descriptor` until its other end closes.

    Args:
        descriptor: inherited from the harness.
        operations: by name; each takes the order's fields as keywords and returns a figure.
    """
    os.set_inheritable(descriptor, False)
    reader, writer = await asyncio.open_connection(sock=socket.socket(fileno=descriptor))
    writer.write(b'{"value": 0}\n')
    while line := await reader.readline():
        order = json.loads(line)
        name = order.pop("operation")
        try:
            answer: dict[str, float | str] = {"value": await operations[name](**order)}
        except Exception:  # noqa: BLE001 - border: what is measured may raise anything
            answer = {"error": traceback.format_exc()[-1500:]}
        writer.write(json.dumps(answer).encode() + b"\n")
    writer.close()
