r"""How two processes of different nodes prove to each other that they know the cluster token.

    caller    CALL      a number of its own
    listener  ANSWER    a number of its own, and a proof over both
    caller    PROOF     a proof over both; whatever it has to say may follow at once
    either    REFUSAL   why nothing comes of it, as a number

A proof is the HMAC-SHA256, with the token as its key, of who proves it (caller or listener), both
numbers, and the address that the caller asked for. So the token never travels, and what somebody hears
on one connection is worth nothing on another one: the numbers differ, the listener's proof
is none of a caller, and one from another port, passed on by whoever holds this one, is none of this
port's.

    "\x8eRMR" | version u8 | kind u8 | content, whose size goes by the kind

Rules: no input or output, no randomness: numbers that nobody can guess are handed in. Any chunking of
the same bytes does the same. Sizes are fixed, and no text of a stranger's is shown to anybody.
"""

from __future__ import annotations

import hmac
from enum import IntEnum

from remora.errors import ProtocolError, RefusedError
from remora.wire.foreign import ONLY_HERE_PLAIN, describe

#: What a side picks anew for each connection.
NONCE_BYTES = 32
_PROOF_BYTES = 32
#: No text protocol, and no record of TLS, begins so.
_MAGIC = b"\x8eRMR"
#: Raised when any of this changes.
_VERSION = 1
_HEAD_BYTES = len(_MAGIC) + 2


class _Kind(IntEnum):
    CALL = 1
    ANSWER = 2
    PROOF = 3
    REFUSAL = 4


_CONTENT_BYTES = {
    _Kind.CALL: NONCE_BYTES,
    _Kind.ANSWER: NONCE_BYTES + _PROOF_BYTES,
    _Kind.PROOF: _PROOF_BYTES,
    _Kind.REFUSAL: 1,
}


class Reason(IntEnum):
    """Why no connection comes about. The number is what travels."""

    WRONG_TOKEN = 1
    TLS_ALONE = 2
    NO_TLS = 3
    OTHER_VERSION = 4


_WRONG_TOKEN = (
    "wrong cluster token: it is of another instance, or of this one before it was started again"
)
#: What the one side tells of the other that has said so.
_SAYS = {
    Reason.WRONG_TOKEN: _WRONG_TOKEN,
    Reason.TLS_ALONE: "it takes TLS alone: give this side the same node_options",
    Reason.NO_TLS: "it does not use TLS: give both sides the same node_options",
    Reason.OTHER_VERSION: "it has another version of Remora: run the same one on both sides",
}


def refusal(reason: Reason) -> bytes:
    """Encode a refusal. Pure."""
    return _encode(_Kind.REFUSAL, bytes((reason,)))


class NotProvedError(ProtocolError):
    """The other side has not proved itself.

    Attributes:
        reply: what it is to be told before the connection is closed; empty: it would not understand.
    """

    def __init__(self, text: str, reply: bytes = b"") -> None:
        super().__init__(text)
        self.reply = reply


class _Side:
    """What both sides have in common."""

    #: What the other side is to say next; None: it has proved itself.
    _takes: _Kind | None

    def __init__(self, token: str, nonce: bytes, where: str) -> None:
        """Make it.

        Args:
            token: that both know.
            nonce: `NONCE_BYTES` that nobody can guess, used once.
            where: the address that the caller asked for, as both sides see it.

        Raises:
            NotProvedError: the token is empty, which everybody knows.
        """
        if not token:
            raise NotProvedError(
                "this process has no cluster token: it is of no instance on a cluster"
            )
        self._key = token.encode()
        self._nonce = nonce
        self._where = where.encode()
        self._received = b""

    @property
    def is_done(self) -> bool:
        """The other side has proved itself."""
        return self._takes is None

    @property
    def rest(self) -> bytes:
        """What has come behind its proof."""
        return self._received if self._takes is None else b""

    @property
    def lacks(self) -> int:
        """How many bytes surely belong to what the other side has still to say; 0: it is done."""
        if self._takes is None:
            return 0
        if len(self._received) < _HEAD_BYTES:
            return _HEAD_BYTES - len(self._received)
        kind = _Kind(self._received[_HEAD_BYTES - 1])
        return _HEAD_BYTES + _CONTENT_BYTES[kind] - len(self._received)

    def receive(self, data: bytes) -> bytes:
        """Take received bytes; returns what to send.

        Raises:
            NotProvedError: nothing comes of it; the connection is of no more use.
            RefusedError: so says the other side.
        """
        self._received += data
        reply = b""
        while (content := self._cut()) is not None:
            reply += self._take(content)
        return reply

    def _cut(self) -> bytes | None:
        """Cut off the next message that this side takes; None: it is not there whole."""
        data = self._received
        if self._takes is None:
            return None
        if not _MAGIC.startswith(data[: len(_MAGIC)]):
            raise _foreign(data)
        if len(data) < _HEAD_BYTES:
            return None
        version, kind = data[len(_MAGIC)], data[len(_MAGIC) + 1]
        if version != _VERSION:
            raise NotProvedError(
                f"it proves the token in version {version}, this process in {_VERSION}: run the same "
                "version of remora on both sides",
                refusal(Reason.OTHER_VERSION),
            )
        if kind not in (self._takes, _Kind.REFUSAL):
            raise NotProvedError(f"no proof of the token: message {kind} comes out of turn")
        end = _HEAD_BYTES + _CONTENT_BYTES[_Kind(kind)]
        if len(data) < end:
            return None
        self._received = data[end:]
        content = data[_HEAD_BYTES:end]
        if kind == _Kind.REFUSAL:
            raise RefusedError(_said(content[0]))
        return content

    def _take(self, content: bytes) -> bytes:
        raise NotImplementedError

    def _proof(self, role: bytes, of_caller: bytes, of_listener: bytes) -> bytes:
        # All but the last part have fixed sizes: no two sets of parts make the same message.
        message = b"remora token 1 " + role + of_caller + of_listener + self._where
        return hmac.digest(self._key, message, "sha256")


#: Of one length.
_CALLER, _LISTENER = b"caller..", b"listener"


class ProvingCaller(_Side):
    """The side that connects. It sends `begin()` first."""

    _takes: _Kind | None = _Kind.ANSWER

    def begin(self) -> bytes:
        """Say the first word."""
        return _encode(_Kind.CALL, self._nonce)

    def _take(self, content: bytes) -> bytes:
        theirs, proof = content[:NONCE_BYTES], content[NONCE_BYTES:]
        if not hmac.compare_digest(proof, self._proof(_LISTENER, self._nonce, theirs)):
            # Whoever that is gets no proof of ours.
            raise NotProvedError(
                f"{_WRONG_TOKEN}, or somebody else listens there", refusal(Reason.WRONG_TOKEN)
            )
        self._takes = None
        return _encode(_Kind.PROOF, self._proof(_CALLER, self._nonce, theirs))


class ProvingListener(_Side):
    """The side that accepts. It waits for the first word."""

    _takes: _Kind | None = _Kind.CALL
    _theirs = b""

    def _take(self, content: bytes) -> bytes:
        if self._takes is _Kind.CALL:
            self._theirs, self._takes = content, _Kind.PROOF
            proof = self._proof(_LISTENER, content, self._nonce)
            return _encode(_Kind.ANSWER, self._nonce + proof)
        if not hmac.compare_digest(content, self._proof(_CALLER, self._theirs, self._nonce)):
            raise NotProvedError(_WRONG_TOKEN, refusal(Reason.WRONG_TOKEN))
        self._takes = None
        return b""


def _foreign(data: bytes) -> NotProvedError:
    """Say what the first bytes of the other side look like."""
    what = describe(data)
    # Whatever is said makes the other side see that this one has no TLS.
    reply = refusal(Reason.NO_TLS) if what == ONLY_HERE_PLAIN else b""
    return NotProvedError(what or "no proof of the token: it speaks something else", reply)


def _encode(kind: _Kind, content: bytes) -> bytes:
    return _MAGIC + bytes((_VERSION, kind)) + content


def _said(number: int) -> str:
    try:
        return _SAYS[Reason(number)]
    except ValueError:
        return f"reason {number}, which this version does not know"
