"""Bytes of a gRPC request to messages of the user's types, and back.

The classes are those of the user's generated modules, found by the full names that come with the
request. The libraries are imported when the first request comes: a replica without gRPC needs none.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from remora.wire.messages import GrpcHead


@lru_cache(maxsize=1024)
def parser(full_name: str, module: str) -> Callable[[bytes], Any]:
    """What makes a message of that type of bytes.

    Args:
        full_name: of the message type, such as `shop.Order`.
        module: Python module that defines it.

    Raises:
        ImportError: the module cannot be imported here.
    """
    from google.protobuf import descriptor_pool, message_factory

    pool = descriptor_pool.Default()
    try:
        found = pool.FindMessageTypeByName(full_name)
    except KeyError:
        importlib.import_module(module)
        found = pool.FindMessageTypeByName(full_name)
    parse: Callable[[bytes], Any] = message_factory.GetMessageClass(found).FromString
    return parse


def serialize(result: Any, head: GrpcHead, method: str) -> bytes:
    """Bytes of what a handler returned or yielded.

    Raises:
        TypeError: it is no message of the type that the service promises.
    """
    kind = type(result)
    descriptor = getattr(kind, "DESCRIPTOR", None)
    if getattr(descriptor, "full_name", None) != head.response_type:
        raise TypeError(
            f"{method} must answer with a message of type {head.response_type}, as {head.service} "
            f"says; it answered with {kind.__qualname__}"
        )
    data: bytes = result.SerializeToString()
    return data
