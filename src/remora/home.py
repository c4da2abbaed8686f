"""Where one instance keeps its files: sockets, database, logs.

One instance lives in one state folder. Two folders are two instances that do not know each
other. This module only computes paths and makes directories; it starts nothing.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

#: Linux limits the path of a Unix socket to 108 bytes including the final NUL. Socket names
#: below take up to 30 more.
_MAX_SOCKET_DIR_BYTES = 75
#: Where sockets are whose state folder has a longer path. Not `TMPDIR`: who has another one, as cron
#: and sudo give it, would not find the instance.
SHORT_FOLDER = Path("/tmp")


@dataclass(frozen=True)
class Home:
    """The state folder of one instance.

    Attributes:
        root: the folder itself, absolute.
    """

    root: Path

    @classmethod
    def locate(cls, root: str | os.PathLike[str] | None = None) -> Home:
        """Use `root`, else the environment variable `REMORA_HOME`, else `~/.remora`."""
        chosen = root or os.environ.get("REMORA_HOME") or Path.home() / ".remora"
        return cls(Path(chosen).expanduser().absolute())

    @property
    def sockets(self) -> Path:
        """Folder of the Unix sockets (mode 0700).

        A state folder with a long path keeps its sockets in a short folder derived from its
        path, because the kernel limits the length of a socket's path.
        """
        inside = self.root / "run"
        if len(os.fsencode(inside)) <= _MAX_SOCKET_DIR_BYTES:
            return inside
        digest = hashlib.sha256(os.fsencode(self.root)).hexdigest()[:12]
        return SHORT_FOLDER / f"remora-{os.getuid()}-{digest}"

    @property
    def controller_socket(self) -> Path:
        """Where the controller listens."""
        return self.sockets / "controller.sock"

    @property
    def admin_socket(self) -> Path:
        """Where the REST API listens."""
        return self.sockets / "admin.sock"

    @property
    def supervisor_socket(self) -> Path:
        """Where the supervisor of the embedded engine listens."""
        return self.sockets / "supervisor.sock"

    @property
    def tally_file(self) -> Path:
        """Where the proxies tell each other how many connections they have."""
        return self.sockets / "proxies"

    @property
    def membership_file(self) -> Path:
        """What programs on this node need to reach other nodes."""
        return self.root / "membership.json"

    @property
    def lock_file(self) -> Path:
        """Locked by the supervisor for as long as the instance lives."""
        return self.root / "instance.lock"

    @property
    def database(self) -> Path:
        """The controller's state."""
        return self.root / "state.db"

    @property
    def logs(self) -> Path:
        """Folder of the log files."""
        return self.root / "logs"

    def stacks_file(self, process_id: str) -> Path:
        """Where a replica whose event loop stands still saves where its threads are.

        It must be open before that, and is hidden for as long as there is nothing in it.
        """
        return self.logs / f".{self.saved_stacks_file(process_id).name}"

    def saved_stacks_file(self, process_id: str) -> Path:
        """Where that is found once something was saved."""
        return self.logs / f"stuck-{re.sub(r'[^A-Za-z0-9._-]', '-', process_id)}.txt"

    def make(self) -> None:
        """Create the folders, and see that this user alone can reach what is in them.

        The state holds code that processes of this instance run: who can write it can run
        anything as this user, who can read it sees arguments and environment.

        Raises:
            PermissionError: one of the folders belongs to somebody else, or is for everybody.
        """
        for folder in (self.root, self.sockets, self.logs):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _keep_to_ourselves(folder)


def _keep_to_ourselves(folder: Path) -> None:
    me = os.getuid()
    # A state folder may be a link of ours to a larger disk, but nobody else's link.
    for found in (folder.lstat(), folder.stat()):
        if found.st_uid != me:
            raise PermissionError(
                errno.EPERM, f"{folder} belongs to user {found.st_uid}, not to {me}"
            )
    mode = folder.stat().st_mode
    if not mode & 0o077:
        return
    if mode & stat.S_ISVTX or folder == Path(folder.anchor):
        raise PermissionError(errno.EPERM, f"{folder} is a folder that everybody shares")
    folder.chmod(0o700)
