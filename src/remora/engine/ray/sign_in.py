"""The token of a Ray cluster: which is shown to it, and how a cluster that refuses is told.

Ray shows one of its own accord to the cluster that it finds on this machine (`auto`), and to none
that is named by its address. Here one that is named is treated alike where it is on this machine:
`ray start` there asks for a token as soon as the user has one. Hosts elsewhere are shown none
unless `RAY_AUTH_MODE=token` says so.

Rules: the part of Ray's private interfaces that is about tokens.
"""

from __future__ import annotations

import os
from typing import Any

import ray

from remora.engine.ray.greeting import greet
from remora.errors import InstanceError

#: `token` or `disabled`; Ray's.
MODE = "RAY_AUTH_MODE"
#: Compiled, and without types.
_ray: Any = ray._raylet


def sign_in(address: str) -> None:
    """See that a head answers at `host:port` and takes this program; other addresses are Ray's.

    Shows the user's token from here on where a head of this machine wants one.

    Raises:
        InstanceError: nobody answers there, or it does not take this program; says why.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return
    speaks_tls = os.environ.get("RAY_USE_TLS", "0") not in ("", "0", "false", "False")
    said = greet(address, _authorization(), speaks_tls=speaks_tls)
    if not said.refuses:
        return
    if shows_token():
        raise refused(f"at {address}", "it takes another one than the one that it was shown")
    if not _has_token():
        raise refused(f"at {address}", "this program has none")
    if not said.is_here:
        raise refused(
            f"at {address}", "the one of this user is shown to other machines only when asked for"
        )
    if MODE in os.environ:
        raise refused(f"at {address}", f"{MODE}={os.environ[MODE]} says to show none")
    show_token()
    if greet(address, _authorization()).refuses:
        _show_none()
        raise refused(f"at {address}", "it takes another one than the one of this user")


def refused(where: str, why: str) -> InstanceError:
    """Say what to do about a cluster that wants a token. Pure.

    Args:
        where: it is, in words.
        why: it does not take this program.
    """
    return InstanceError(
        f"The Ray cluster {where} wants a token: {why}. Set the environment variable "
        f"{MODE}=token, and have the cluster's token in ~/.ray/auth_token (RAY_AUTH_TOKEN_PATH names "
        "another file, RAY_AUTH_TOKEN is the token)."
    )


def shows_token() -> bool:
    """This process shows its token to every head that it talks to."""
    return bool(_ray.get_authentication_mode() == _ray.AuthenticationMode.TOKEN)


def show_token() -> None:
    """Have this process, and those that it starts, show the user's token."""
    os.environ[MODE] = "token"
    read_again()


def _show_none() -> None:
    del os.environ[MODE]
    read_again()


def read_again() -> None:
    """Have Ray look at the environment, which it has read when it was imported."""
    _ray.Config.initialize("")


def _has_token() -> bool:
    return bool(_ray.AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True))


def _authorization() -> str:
    if not shows_token() or not _has_token():
        return ""
    shown = _ray.AuthenticationTokenLoader.instance().get_token_for_http_header()
    return next((value for name, value in shown.items() if name.lower() == "authorization"), "")
