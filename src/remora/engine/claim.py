"""Taking possession of a state folder: its lock, its leftovers, who holds it.

Everything that can be wrong with a folder is found here, before any process is started, and said
in one sentence that ends with what to do.

Rules: standard library and the lowest layer of the package only; the supervisor imports this.
"""

from __future__ import annotations

import errno
import fcntl
import importlib
import json
import os
import time
from dataclasses import dataclass, replace

from remora.engine import linux, socket_folder
from remora.errors import InstanceError
from remora.home import Home

#: What the text about an owner is filled up to; it takes about half of that.
_OWNER_BYTES = 512
#: How long others may look at the lock, one after another, while an instance wants to take it.
_LOOKING_S = 0.5


@dataclass(frozen=True)
class Owner:
    """Who holds a state folder.

    Attributes:
        pid: of its supervisor.
        token: marks its processes.
        http_url: of its front door; empty without HTTP.
        bound: True: ends with the program that started it.
        ending: True: it takes nothing new and lets go of the folder soon.
        grpc_address: `host:port` where it serves gRPC; empty without.
        grpc_digest: tells its gRPC setup from others.
        engine: that runs it.
        cluster: address of the Ray cluster where it runs; empty: it runs on none.
        shows_token: the user's token of Ray is shown to that cluster.
        version: of Remora; empty: one that does not tell it.
    """

    pid: int
    token: str
    http_url: str = ""
    bound: bool = False
    ending: bool = False
    grpc_address: str = ""
    grpc_digest: str = ""
    engine: str = "local"
    cluster: str = ""
    shows_token: bool = False
    version: str = ""


class Claim:
    """The lock on a state folder, held for as long as this object is open.

    The lock is the kernel's, on an open file: it is free the moment its holder is gone, however
    it went. The file tells others who that is; its text means nothing without the lock.
    """

    def __init__(
        self, home: Home, fd: int, previous: Owner | None, sockets_fd: int | None = None
    ) -> None:
        self.home = home
        self.previous = previous
        self._fd = fd
        #: What a child is to close: the lock is held for as long as one of them is open anywhere.
        self.fds = (fd,) if sockets_fd is None else (fd, sockets_fd)

    @classmethod
    def take(cls, home: Home) -> Claim:
        """Lock the folder of `home`, which is made if need be.

        Raises:
            InstanceError: another instance has it, or it cannot be written.
        """
        try:
            socket_folder.make(home)
            fd = os.open(home.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise folder_error(home, error) from None
        try:
            _lock(fd)
        except OSError as error:
            owner = _read_owner(fd)
            os.close(fd)
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise folder_error(home, error) from None
            raise _taken(home, owner) from None
        try:
            # Only now: the owner before may have removed its folders until it let go of the lock.
            sockets_fd = socket_folder.hold(home)
        except OSError as error:
            os.close(fd)
            raise folder_error(home, error) from None
        return cls(home, fd, _read_owner(fd), sockets_fd)

    def write_owner(self, owner: Owner | None) -> None:
        """Tell others who holds the folder; None: nobody any more.

        Raises:
            InstanceError: the disk is full.
        """
        # All of one length: whoever reads meanwhile finds either the old text or the new one.
        if owner is not None:
            owner = replace(owner, version=owner.version or own_version())
        text = b"" if owner is None else json.dumps(owner.__dict__).encode().ljust(_OWNER_BYTES)
        try:
            if os.pwrite(self._fd, text, 0) != len(text):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.ftruncate(self._fd, len(text))
        except OSError as error:
            raise folder_error(self.home, error) from None

    def write_ending(self) -> None:
        """Tell others that whoever holds the folder lets go of it soon."""
        if (owner := _read_owner(self._fd)) is None:
            return
        try:
            self.write_owner(replace(owner, ending=True))
        except InstanceError:
            pass  # A full disk does not keep an instance from ending.

    def clean(self) -> list[str]:
        """Remove what an instance that was killed left here: processes and sockets.

        Returns:
            What was found, in words.
        """
        found = []
        if self.previous is not None and (pids := linux.members(self.previous.token, ())):
            found.append(f"processes of an instance that was killed: {pids}")
            if stuck := linux.kill_members(self.previous.token, (), timeout_s=2.0):
                found.append(f"processes that cannot be killed: {stuck}")
        remove_sockets(self.home)
        return found

    def leave(self) -> None:
        """Remove what only a running instance needs, and let go of the folder."""
        remove_sockets(self.home)
        socket_folder.leave(self.home)
        self.write_owner(None)
        self.close()

    def close(self) -> None:
        """Let go of the folder."""
        for fd in self.fds:
            os.close(fd)


def own_version() -> str:
    """Version of Remora that runs here."""
    # By its name: whoever imports this is imported by the package itself.
    return str(importlib.import_module("remora").__version__)


def other_version(owner: Owner) -> str:
    """Say that an instance is of another version of Remora; empty: it is not, or does not tell. Pure."""
    if owner.version in ("", own_version()):
        return ""
    return (
        f"The instance (pid {owner.pid}) runs Remora {owner.version}, this is {own_version()}: what "
        "one of them does not know may fail. `remora shutdown -y` and a new start make them one."
    )


def _lock(fd: int) -> None:
    """Take the lock of an instance, past those that only look whether somebody has it.

    Raises:
        OSError: another instance has it.
    """
    deadline = time.monotonic() + _LOOKING_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError:
            # An owner lets nobody share its lock. `find_owner` does, and is gone in a moment.
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            fcntl.flock(fd, fcntl.LOCK_UN)
            if time.monotonic() >= deadline:
                raise
        time.sleep(0.0005)


def remove_sockets(home: Home) -> None:
    """Remove every socket file of an instance that is not running, and what lies beside them."""
    home.tally_file.unlink(missing_ok=True)
    for kind in ("*.sock", "*.beat", "*.new"):
        for path in home.sockets.glob(kind):
            path.unlink(missing_ok=True)


def _read_owner(fd: int) -> Owner | None:
    try:
        value = json.loads(os.pread(fd, 4096, 0))
        pid, token, ending = int(value["pid"]), str(value["token"]), bool(value.get("ending"))
        grpc = str(value.get("grpc_address", "")), str(value.get("grpc_digest", ""))
        engine = str(value.get("engine", "local")), str(value.get("cluster", ""))
        shows_token = bool(value.get("shows_token"))
        return Owner(
            pid,
            token,
            value["http_url"],
            value["bound"],
            ending,
            *grpc,
            *engine,
            shows_token,
            str(value.get("version", "")),
        )
    except (OSError, ValueError, KeyError, TypeError):
        # Empty after an orderly end; half a line after a full disk.
        return None


def find_owner(home: Home) -> Owner | None:
    """Find the running instance of a state folder; None: there is none."""
    try:
        fd = os.open(home.lock_file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return _read_owner(fd)
    finally:
        os.close(fd)
    return None


def is_held(home: Home) -> bool:
    """Somebody has locked the folder, or just looks at who has."""
    try:
        fd = os.open(home.lock_file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False


def left_behind(home: Home) -> Owner | None:
    """Find the instance that was killed in a state folder, or runs there; None: neither."""
    try:
        fd = os.open(home.lock_file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return _read_owner(fd)
    finally:
        os.close(fd)


def _taken(home: Home, owner: Owner | None) -> InstanceError:
    who = "another process" if owner is None else f"pid {owner.pid}"
    serving = f" and serves {owner.http_url}" if owner and owner.http_url else ""
    return InstanceError(
        f"An instance of Remora runs in {home.root} already: {who} holds it{serving}. "
        "End it with `remora shutdown -y`, or give this one a folder of its own with the "
        "environment variable REMORA_HOME."
    )


def folder_error(home: Home, error: OSError) -> InstanceError:
    """Say why a state folder cannot be used."""
    cause = error.strerror or str(error)
    if isinstance(error, NotADirectoryError | FileExistsError):
        cause = "something on its path is a file, not a folder"
    return InstanceError(
        f"Cannot use the state folder {home.root}: {cause}. Make it writable and see that its "
        "disk has room, or set the environment variable REMORA_HOME to another folder."
    )
