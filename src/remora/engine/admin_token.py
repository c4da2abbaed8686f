"""What the REST API asks for where others reach it: a token, in a file of the state folder.

Rules: standard library and the lowest layer of the package only.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import secrets
import tempfile
from pathlib import Path

from remora.errors import InstanceError
from remora.home import Home


def is_loopback(host: str) -> bool:
    """Tell an address that only this machine reaches. Pure."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        # Other names lead wherever their owner says, also here.
        return host == "localhost"


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
