"""The vocabulary of the wire: one envelope and one small set of frame kinds for all transports.

A connection carries many requests at once, told apart by a number that the caller picks
(increasing, from 1). The life of one number:

    caller  REQUEST [BODY …] ……… [CREDIT …] [CANCEL]
    callee           [CREDIT …]                         room for the body, or for an argument
                     [CANCEL]                           no more of an argument that is a stream
                     REJECT                             turned away, never started
                     RESPONSE                           one answer, complete
                     START ITEM … END                   a stream (HTTP response, generator)
                                                        or an open WebSocket
                     ERROR                              at any point, final

Beside the requests: HELLO (first frame of both sides), FREED (a replica that turned the
caller away, or was asked to say so, has room again: for as many as its load field says), BYE
(the callee takes no request above this number any more), PROMISES (what the callee's code says of
itself, once, after HELLO), NOTICE (what a replica tells of itself to those who choose between
replicas: after HELLO, and whenever it changes).

For large buffers between processes of one host: SEGMENT (here is shared memory of mine),
SEGMENT_TAKEN (I can read it, or not), SEGMENT_GONE (nothing in it will be lent any more), RELEASE
(these blocks of yours are used here no more), FORFEIT (nor these, but somebody whom I had lent them
on to may use them still: never use their places again).

Rules: plain data only. Fields are only added at the end, with a default, so that two
versions understand each other.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import msgspec

#: Flag of a REQUEST: send FREED as soon as there is room for more than this one.
WANTS_ROOM = 1
#: Flag of any frame: some buffers of its body lie in a segment, see `wire/parcel.py`.
LENT = 2

#: Raised when the meaning of a frame changes; the HELLO of both sides must agree.
WIRE_VERSION = 2


class FrameKind(IntEnum):
    """What a frame is. The number is what travels."""

    HELLO = 1
    REQUEST = 2
    BODY = 3
    CANCEL = 4
    CREDIT = 5
    REJECT = 6
    RESPONSE = 7
    START = 8
    ITEM = 9
    END = 10
    ERROR = 11
    FREED = 12
    BYE = 13
    PROMISES = 14
    NOTICE = 15
    SEGMENT = 20
    SEGMENT_TAKEN = 21
    SEGMENT_GONE = 22
    RELEASE = 23
    FORFEIT = 24


class CallKind(IntEnum):
    """How the body of a request is to be understood, and what the answer looks like."""

    UNARY = 1
    STREAM = 2
    HTTP = 3
    WEBSOCKET = 4
    GRPC = 5
    CONTROL = 6


class HttpHead(msgspec.Struct, array_like=True):
    """The head of an HTTP request, as bytes wherever ASGI says bytes."""

    method: str
    path: str
    raw_path: bytes
    query_string: bytes
    root_path: str
    headers: list[tuple[bytes, bytes]]
    scheme: str = "http"
    http_version: str = "1.1"
    client: tuple[str, int] | None = None
    server: tuple[str, int] | None = None
    subprotocols: list[str] = []


class HttpStart(msgspec.Struct, array_like=True, frozen=True):
    """The head of an HTTP response."""

    status: int
    headers: list[tuple[bytes, bytes]]
    #: Template of the application's route that matched, below its prefix; empty: none did.
    route: str = ""


#: The header of a text that no user's code has written.
PLAIN_TEXT = (b"content-type", b"text/plain; charset=utf-8")


class WebSocketClose(msgspec.Struct, array_like=True, frozen=True):
    """How a WebSocket ends: in the END frame of the callee, in the last BODY frame of the caller."""

    code: int
    reason: str = ""
    #: The client is gone without a word: nobody waits for what is still being worked on.
    cut: bool = False


#: The meta of a BODY or ITEM frame of a WebSocket, whose body is one whole message; of a BODY
#: frame with `CLOSE` the body is a `WebSocketClose`, and nothing follows it.
WEBSOCKET_TEXT = b"t"
WEBSOCKET_BINARY = b"b"
WEBSOCKET_CLOSE = b"c"


#: Metadata of gRPC: values are text, or bytes where the key ends in `-bin`.
Metadata = list[tuple[str, Any]]


class GrpcHead(msgspec.Struct, array_like=True):
    """What comes with a gRPC request beside its message; the messages travel as raw bytes."""

    #: `package.Service`.
    service: str
    #: Full names of the message types, and the Python module that defines the first one.
    request_type: str
    request_module: str
    response_type: str
    #: The client sends any number of messages, each in a BODY frame.
    request_streaming: bool = False
    #: The answer is any number of messages, each in an ITEM frame.
    response_streaming: bool = False
    metadata: Metadata = []
    #: The client's address, in gRPC's own notation.
    peer: str = ""
    #: Of a client that has proved who it is: the properties of its certificate.
    auth: dict[str, list[bytes]] = {}
    #: Which of these properties says who it is; empty: none.
    identity_key: str = ""
    #: W3C `tracestate`, as received.
    trace_state: str = ""


class GrpcEnd(msgspec.Struct, array_like=True, frozen=True):
    """How a gRPC request ended, as its handler wants it: the meta of a RESPONSE or END.

    No meta at all stands for an instance with all defaults.
    """

    #: 0: OK; see `core/request/grpc_status.py`.
    code: int = 0
    details: str = ""
    trailing: Metadata = []
    #: Of the response's messages: 0 none, 1 deflate, 2 gzip. That of a stream is the meta of START.
    compression: int = 0


class Envelope(msgspec.Struct, array_like=True):
    """Everything about a request that is not its body.

    A new feature that crosses processes is a field here, not a new path.
    """

    request_id: str
    application: str
    deployment: str
    method: str
    kind: CallKind
    #: Seconds left until the caller gives up, measured at sending; None: no limit.
    timeout_s: float | None = None
    #: 0 for the first try.
    attempt: int = 0
    #: True: may run twice, so a replica's death is answered by another try.
    idempotent: bool = False
    multiplexed_model_id: str = ""
    session_id: str = ""
    #: W3C `traceparent`, as received.
    trace_context: str = ""
    #: Who calls: `<app>/<deployment>` or a proxy's or script's name.
    caller: str = ""
    #: Route prefix of the application that the request came in by ("" for handle calls).
    route: str = ""
    #: More body follows in BODY frames.
    body_follows: bool = False
    #: How many bytes of stream the callee may send before it waits for CREDIT.
    credit_bytes: int = 0
    http: HttpHead | None = None
    #: Format of the body, and the one wanted for the answer; empty: pickle, as everywhere.
    request_serialization: str = ""
    response_serialization: str = ""
    #: Which arguments (by position or name) are streams: their items follow in BODY frames.
    streams: list[int | str] = []
    #: Only keep a slot: the replica answers CREDIT, and the content follows in one BODY frame,
    #: whose meta is the envelope of the request that takes the slot. CANCEL gives it back.
    hold: bool = False
    grpc: GrpcHead | None = None


class Part(msgspec.Struct, array_like=True, frozen=True):
    """The meta of a BODY frame that belongs to an argument which is a stream."""

    #: Which of `Envelope.streams`.
    stream: int
    #: How the item in the frame's body is to be opened; see `wire/values.py`.
    how: str = ""
    #: The end: no item.
    last: bool = False
    #: An end that is an error: the meta of an ERROR frame, whose body is this frame's.
    error: bytes = b""


class Grant(msgspec.Struct, array_like=True, frozen=True):
    """The meta of a CREDIT frame for such a stream."""

    stream: int
    num_bytes: int


class Hello(msgspec.Struct, array_like=True, frozen=True):
    """The first frame of both sides of a connection."""

    version: int
    #: For messages and logs: who is speaking.
    name: str = ""
    #: Not empty: why the connection is refused. Nothing follows.
    refused: str = ""


class Promises(msgspec.Struct, array_like=True, frozen=True):
    """Which requests of a deployment may run twice, as its code is marked."""

    #: Methods, by name.
    methods: list[str] = []
    #: Routes of its ASGI app in the order in which they are tried: HTTP methods (none: all of
    #: them), pattern of the path below the route prefix, and whether it is marked.
    routes: list[tuple[list[str], str, bool]] = []


class ReplicaNotice(msgspec.Struct, array_like=True, frozen=True):
    """What a replica tells its callers of itself; each one replaces the one before."""

    #: Multiplexed models that it holds, the least recently used first.
    models: tuple[str, ...] = ()
    #: What `record_replica_metadata` of the user's code returned.
    metadata: dict[str, Any] = {}
    #: What `record_routing_stats` of the user's code last returned.
    stats: dict[str, Any] = {}


class ErrorMeta(msgspec.Struct, array_like=True, frozen=True):
    """What went wrong, readable without unpickling. The frame's body may hold the pickled exception."""

    #: Class name of the exception, as in a traceback's last line.
    type_name: str
    message: str
    #: The remote traceback as text; empty where none helps the reader.
    traceback: str = ""
    #: How an HTTP front door answers.
    http_status: int = 500
    #: True: the callee guarantees that the user's code never saw the request.
    never_started: bool = False
    #: True: raised by the user's code; False: by the serving system.
    from_user: bool = True
    #: Seconds after which trying again makes sense; None: unknown.
    retry_after_s: float | None = None
    #: What kept the exception itself from travelling, and the cure; empty: it is in the body.
    obstacle: str = ""


class SegmentOffer(msgspec.Struct, array_like=True, frozen=True):
    """A file in memory that blocks will be lent of, and where its owner has it."""

    number: int
    pid: int
    #: Descriptor of the owner.
    fd: int
    size: int
    #: What the file begins with: proves that it is the one that is meant.
    token: bytes


class SegmentAnswer(msgspec.Struct, array_like=True, frozen=True):
    """Whether a segment can be read by who was offered it."""

    number: int
    taken: bool
