"""The token is proved in any chunking, never shown, and by nobody who does not know it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import suppress

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from remora.errors import ProtocolError, RefusedError
from remora.wire.proof import (
    NONCE_BYTES,
    NotProvedError,
    ProvingCaller,
    ProvingListener,
    Reason,
    refusal,
)

nonces = st.binary(min_size=NONCE_BYTES, max_size=NONCE_BYTES)
tokens = st.text(min_size=8, max_size=40)
sizes = st.lists(st.integers(1, 200), min_size=1)
WHERE = "10.0.0.1 4000"
A, B = b"a" * NONCE_BYTES, b"b" * NONCE_BYTES


def chunks(data: bytes, sizes: list[int]) -> Iterator[bytes]:
    start = 0
    for size in itertools.cycle(sizes):
        if start >= len(data):
            return
        yield data[start : start + size]
        start += size


def feed(side: ProvingCaller | ProvingListener, data: bytes, sizes: list[int]) -> bytes:
    return b"".join(side.receive(chunk) for chunk in chunks(data, sizes))


@given(token=tokens, a=nonces, b=nonces, rest=st.binary(max_size=90), sizes=sizes)
def test_who_knows_the_token_proves_it_in_any_chunking_and_never_shows_it(
    token: str, a: bytes, b: bytes, rest: bytes, sizes: list[int]
) -> None:
    caller, listener = ProvingCaller(token, a, WHERE), ProvingListener(token, b, WHERE)
    called = caller.begin()
    answered = feed(listener, called, sizes)
    assert listener.lacks > 0
    proved = feed(caller, answered, sizes)
    assert caller.is_done
    assert caller.lacks == 0
    # What the caller has to say next comes along: one round trip in all.
    assert feed(listener, proved + rest, sizes) == b""
    assert listener.is_done
    assert listener.rest == rest
    assert token.encode() not in called + answered + proved


@given(token=tokens, other=tokens, a=nonces, b=nonces)
def test_another_token_is_told_on_both_sides_and_proves_nothing(
    token: str, other: str, a: bytes, b: bytes
) -> None:
    assume(token != other)
    caller, listener = ProvingCaller(token, a, WHERE), ProvingListener(other, b, WHERE)
    answered = listener.receive(caller.begin())
    with pytest.raises(NotProvedError, match="wrong cluster token") as found:
        caller.receive(answered)
    assert not caller.is_done
    with pytest.raises(RefusedError, match="wrong cluster token: it is of another instance"):
        listener.receive(found.value.reply)
    assert not listener.is_done


@given(changed=st.integers(0, 69), bit=st.integers(0, 7))
def test_a_message_that_was_changed_proves_nothing(changed: int, bit: int) -> None:
    caller, listener = ProvingCaller("token", A, WHERE), ProvingListener("token", B, WHERE)
    answered = bytearray(listener.receive(caller.begin()))
    answered[changed] ^= 1 << bit
    with suppress(ProtocolError):
        caller.receive(bytes(answered))
    assert not caller.is_done


def test_a_proof_is_worth_nothing_on_another_connection() -> None:
    caller, listener = ProvingCaller("token", A, WHERE), ProvingListener("token", B, WHERE)
    answered = listener.receive(caller.begin())
    proved = caller.receive(answered)
    # To a caller that has picked another number, and to a listener that has.
    with pytest.raises(NotProvedError):
        ProvingCaller("token", B, WHERE).receive(answered)
    later = ProvingListener("token", b"c" * NONCE_BYTES, WHERE)
    later.receive(ProvingCaller("token", A, WHERE).begin())
    with pytest.raises(NotProvedError, match="wrong cluster token"):
        later.receive(proved)


def test_what_a_listener_proves_is_no_proof_of_a_caller() -> None:
    """Somebody holds a port and asks a process of the instance to prove what he is asked to."""
    caller, listener = ProvingCaller("token", A, WHERE), ProvingListener("token", B, WHERE)
    answered = listener.receive(caller.begin())
    proof = answered[-32:]
    with pytest.raises(NotProvedError):
        listener.receive(answered[:6].replace(b"\x02", b"\x03") + proof)


def test_who_holds_a_port_cannot_pass_on_what_another_port_proves() -> None:
    caller = ProvingCaller("token", A, "10.0.0.1 4000")
    listener = ProvingListener("token", B, "10.0.0.1 4001")
    answered = listener.receive(caller.begin())
    with pytest.raises(NotProvedError, match="or somebody else listens there"):
        caller.receive(answered)


@given(data=st.binary(max_size=200), sizes=sizes, listens=st.booleans())
def test_junk_ends_in_an_error_or_waits_and_is_never_kept_beyond_a_message(
    data: bytes, sizes: list[int], listens: bool
) -> None:
    side = ProvingListener("token", A, WHERE) if listens else ProvingCaller("token", A, WHERE)
    with suppress(ProtocolError):
        feed(side, data, sizes)
    assert not side.is_done
    assert len(side._received) < 80 + max(sizes)


@given(st.sampled_from(Reason))
def test_each_reason_is_told_in_words(reason: Reason) -> None:
    with pytest.raises(RefusedError, match=r"[a-z]+"):
        ProvingCaller("token", A, WHERE).receive(refusal(reason))
    # Of a later version.
    with pytest.raises(RefusedError, match="reason 200, which this version does not know"):
        ProvingCaller("token", A, WHERE).receive(refusal(reason)[:-1] + b"\xc8")
