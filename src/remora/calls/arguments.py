"""What a call carries: arguments to bytes, and what has to happen to some of them first.

- A `DeploymentResponse` is waited for. Its bytes go on as they came, unopened; only a call in
  another format than pickle opens them.
- An `ObjectRef` of Ray is waited for too, and its value is sent.
- A generator, plain or asynchronous, and whatever else has `__aiter__` (a streaming response too)
  becomes a stream: the callee gets an asynchronous iterator and pulls it.

Both only at the top level. Inside a list or an object nothing is looked for.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncGenerator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from types import AsyncGeneratorType, GeneratorType
from typing import Any, NamedTuple

from remora.calls.streamed import DeploymentResponseGenerator
from remora.replica.sync_stream import iterate_in_thread
from remora.response import DeploymentResponse
from remora.router.upload import Upload
from remora.transport.packing import PICKLE_ERRORS, explained, pack_call, pack_value
from remora.wire import values
from remora.wire.messages import Envelope
from remora.wire.parcel import Body

#: Looking for an attribute that a type does not have takes 0.3 µs; the usual ones have none.
_PLAIN = frozenset((int, str, float, bytes, bool, type(None), dict, list, tuple))
#: Position or name of an argument.
Place = int | str


class Content(NamedTuple):
    """What is sent with a request."""

    body: Body
    upload: Upload | None = None


def is_composed(args: Iterable[Any]) -> bool:
    """Whether something among the arguments is no value yet. On the path of every call."""
    for value in args:
        kind = value.__class__
        if kind in _PLAIN:
            continue
        if kind is DeploymentResponse or kind is GeneratorType or hasattr(kind, "__aiter__"):
            return True
        if _is_object_ref(kind):
            return True
    return False


def _is_object_ref(kind: type) -> bool:
    """Tell a reference to an object of Ray, which need not be installed."""
    return kind.__name__ == "ObjectRef" and kind.__module__ in ("ray", "ray._raylet")


def values_among(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same arguments with None in place of what is no value yet."""

    def known(value: Any) -> Any:
        return None if is_composed((value,)) else value

    return tuple(map(known, args)), {name: known(value) for name, value in kwargs.items()}


def plain_body(args: tuple[Any, ...], kwargs: dict[str, Any], envelope: Envelope) -> Body:
    """Make the body of arguments that are all values; says in the envelope how to open it.

    Raises:
        TypeError, ValueError, pickle.PicklingError: they do not go into the format.
    """
    # Pickle, whoever made it, is opened like every other.
    wanted = envelope.request_serialization
    try:
        envelope.request_serialization, body = pack_call(args, kwargs, wanted)
    except PICKLE_ERRORS as error:
        if wanted in values.PLAIN_FORMATS:
            raise
        method = f"{envelope.deployment}.{envelope.method}"
        raise explained(error, f"{_culprit(args, kwargs, wanted)} of {method}") from error
    return body


def _culprit(args: tuple[Any, ...], kwargs: dict[str, Any], wanted: str) -> str:
    """Name the first argument that cannot be pickled."""
    places: list[tuple[Place, Any]] = [*enumerate(args), *kwargs.items()]
    for place, value in places:
        try:
            values.dumps(value, None, wanted)
        except PICKLE_ERRORS:
            return f"Argument {place!r}"
    return "An argument"


class Composed:
    """Arguments of which some are responses or streams. Taken apart in the caller's thread."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any], envelope: Envelope) -> None:
        self._args = list(args)
        self._kwargs = dict(kwargs)
        self._envelope = envelope
        self._context = contextvars.copy_context()
        self._responses: dict[Place, DeploymentResponse[Any]] = {}
        self._refs: dict[Place, Any] = {}
        self._streams: dict[Place, Any] = {}
        given: list[tuple[Place, Any]] = [*enumerate(args), *kwargs.items()]
        for place, value in given:
            if isinstance(value, DeploymentResponse):
                self._responses[place] = value
            elif _is_object_ref(type(value)):
                self._refs[place] = value
            elif isinstance(value, GeneratorType) or hasattr(type(value), "__aiter__"):
                self._streams[place] = value
                self._put(place, None)

    @property
    def has_streams(self) -> bool:
        """Whether there is a stream among them."""
        return bool(self._streams)

    def _put(self, place: Place, value: Any) -> None:
        if isinstance(place, int):
            self._args[place] = value
        else:
            self._kwargs[place] = value

    async def content(self) -> Content:
        """Wait for every response at once; then what is to be sent.

        Raises:
            Exception: what one of the responses failed with.
        """
        wanted = self._envelope.request_serialization
        is_pickled = wanted not in ("msgpack", "orjson")
        # Giving up this call must not cancel one that others may be waiting for.
        waits = [
            r._unopened() if is_pickled else asyncio.shield(asyncio.ensure_future(r._wait()))
            for r in self._responses.values()
        ]
        waits += [_value_of(ref) for ref in self._refs.values()]
        answers = [await waits[0]] if len(waits) == 1 else await asyncio.gather(*waits)
        for place, answer in zip((*self._responses, *self._refs), answers, strict=True):
            self._put(place, answer)
        envelope = self._envelope
        upload = None
        if self._streams:
            envelope.streams = list(self._streams)
            envelope.body_follows = True
            sources = [_source(value, is_pickled) for value in self._streams.values()]
            upload = Upload(sources, lambda item: pack_value(item, wanted), self._context)
        return Content(plain_body(tuple(self._args), self._kwargs, envelope), upload)


async def _value_of(ref: Any) -> Any:
    return await ref


async def _ended(items: Any) -> AsyncGenerator[Any, None]:
    """Iterate over what is no generator, and close it in the way that it has."""
    try:
        async for item in items:
            yield item
    finally:
        if isinstance(items, DeploymentResponseGenerator):
            items.cancel()
        elif (close := getattr(items, "aclose", None)) is not None:
            await close()


async def _from_thread(items: Iterator[Any]) -> AsyncGenerator[Any, None]:
    threads = ThreadPoolExecutor(1, "remora-argument")
    encoded = iterate_in_thread(threads, items, lambda item: item)  # type: ignore[arg-type]
    try:
        async for item in encoded:
            yield item
    finally:
        await encoded.aclose()
        threads.shutdown(wait=False)


async def _passed_on(answers: DeploymentResponseGenerator[Any]) -> AsyncGenerator[Any, None]:
    """The items of another call, unopened."""
    try:
        async with aclosing(answers._unopened_items()) as items:
            async for item in items:
                yield item
    finally:
        answers.cancel()


def _source(value: Any, is_pickled: bool) -> AsyncGenerator[Any, None]:
    if is_pickled and isinstance(value, DeploymentResponseGenerator):
        return _passed_on(value)
    if isinstance(value, AsyncGeneratorType):
        return value
    if isinstance(value, GeneratorType):
        return _from_thread(value)
    return _ended(value)
