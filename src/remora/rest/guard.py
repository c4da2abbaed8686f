"""Who may use the REST API, and how much a request may bring: checked before anything is read.

Rules: knows no route. A request over the Unix socket is from this user, because nobody else reaches
its folder. One over TCP to this machine alone is from this machine, or from a browser that somebody
else has told what to ask: its `Host` and `Origin` give that away. Everybody else shows the token.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from remora.config_file.declaration import MAX_CONFIG_BYTES
from remora.engine.admin_token import is_loopback
from remora.rest.problems import problem

#: Methods that change something.
_CHANGES = ("DELETE", "POST", "PUT")


@dataclass(frozen=True)
class Rules:
    """What holds for requests over TCP.

    Attributes:
        host: where the API listens.
        token: what has to be shown; empty: nothing, because only this machine reaches it.
        max_requests: how many are worked on at a time; further ones are refused.

    Raises:
        ValueError: others reach it, and there is no token.
    """

    host: str = "127.0.0.1"
    token: str = ""
    max_requests: int = 64

    def __post_init__(self) -> None:
        if not self.token and not is_loopback(self.host):
            raise ValueError(f"Others reach {self.host!r}, and the token for it is empty.")


class Guard:
    """Turns away what may not be."""

    def __init__(self, app: ASGIApp, rules: Rules) -> None:
        self._app = app
        self._rules = rules
        self._ongoing = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or let the app answer it."""
        refused = self.refusal(Request(scope))
        if refused is not None:
            await refused(scope, receive, send)
            return
        self._ongoing += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._ongoing -= 1

    def refusal(self, request: Request) -> JSONResponse | None:
        """Say why a request is turned away; None: it is not."""
        # Peers on a Unix socket have no address.
        if request.scope.get("client") is not None:
            check = self._check_token if self._rules.token else self._check_place
            if (refused := check(request)) is not None:
                return refused
        if self._ongoing >= self._rules.max_requests:
            return problem(
                503,
                f"{self._ongoing} requests are being answered, and no more may be.",
                "Try again in a second.",
                headers={"retry-after": "1"},
            )
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length) > MAX_CONFIG_BYTES:
            return too_large(int(length))
        return None

    def _check_token(self, request: Request) -> JSONResponse | None:
        kind, _, shown = request.headers.get("authorization", "").partition(" ")
        # As bytes: text with other characters than ASCII's cannot be compared in constant time.
        fits = hmac.compare_digest(shown.strip().encode(), self._rules.token.encode())
        if kind.lower() == "bearer" and fits:
            return None
        what = "no token" if not shown else "a token that is not the instance's"
        return problem(
            401,
            f"The request shows {what}.",
            "Send `Authorization: Bearer <token>`; the token is in the file admin-token of the "
            "instance's state folder.",
            headers={"www-authenticate": "Bearer"},
        )

    def _check_place(self, request: Request) -> JSONResponse | None:
        if wrong := self._foreign(request):
            return problem(
                403, wrong, "Ask from this machine; others need an address with a token."
            )
        if _is_unasked(request):
            return problem(
                415,
                "The body must be JSON and say so: `Content-Type: application/json`.",
                "Send that header with the body.",
            )
        return None

    def _foreign(self, request: Request) -> str:
        """Recognise requests that a page of somebody else makes in a browser here."""
        shown = request.headers.get("host", "")
        host = _hostname(shown)
        if shown and host != self._rules.host and not is_loopback(host):
            return f"This API answers requests to this machine only, not to Host {shown!r}."
        origin = request.headers.get("origin")
        # Other ports of this machine have pages of others, too.
        if origin is not None and origin.lower() != f"{request.scope['scheme']}://{shown.lower()}":
            return f"This API takes no requests from pages of {origin!r}."
        return ""


def _hostname(shown: str) -> str:
    try:
        return urlsplit(f"//{shown}").hostname or ""
    except ValueError:
        return ""


def _is_unasked(request: Request) -> bool:
    """Recognise a body that a browser sends to others without asking them first."""
    if request.method not in _CHANGES:
        return False
    has_body = (
        request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers
    )
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return has_body and kind != "application/json"


def too_large(size: int) -> JSONResponse:
    """Refuse a body."""
    return problem(
        413,
        f"The body has {size} bytes or more, and a config may have {MAX_CONFIG_BYTES}.",
        "Code and data do not belong into a config: it names where they are.",
        # What is left of it is not read.
        headers={"connection": "close"},
    )


async def body_of(request: Request) -> bytes | None:
    """Read a body; None: it is too large, and the rest of it is left where it is."""
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > MAX_CONFIG_BYTES:
            return None
        parts.append(part)
    return b"".join(parts)
