"""The processes of one instance, as a program outside of it sees them: begun, waited for, ended.

Rules: prints nothing, holds no module-level state, and never asks the controller. Modules that need
an event loop are imported when they are first used: a command launches the supervisor before it
pays for them.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import time
from typing import Self

from remora.config import LOCAL_ENGINE, HTTPOptions
from remora.engine import launch as local
from remora.engine.claim import is_held
from remora.engine.launch import Launch, LaunchSetup, Owner, find_owner, left_behind
from remora.errors import InstanceError
from remora.home import Home
from remora.wire.grpc import digest

#: Seconds until an instance must be up. It takes a fraction of one; a machine under load, many.
START_LIMIT_S = 60.0
#: Seconds that an instance has to end by itself before it is killed.
EXIT_LIMIT_S = 10.0
_BETWEEN_LOOKS_S = 0.02
#: Seconds from the lock on a folder to its holder's name.
_NAME_LIMIT_S = 5.0


class InstanceProcesses:
    """The processes of an instance that ran already, or that this program launched."""

    #: All of it is inside this process (`local_testing`).
    is_local_testing = False

    def __init__(
        self,
        home: Home,
        launched: Launch | None,
        owner: Owner | None,
        setup: LaunchSetup | None = None,
    ) -> None:
        """Take hold of an instance; `find` and `launch` are the usual ways.

        Args:
            home: its state folder.
            launched: the supervisor that this program started; None: somebody else did.
            owner: who holds the folder, if somebody else does.
            setup: what it was launched with; None: that is not known.
        """
        self.home = home
        engine = (setup and setup.engine) or LOCAL_ENGINE
        self.engine = engine.engine if owner is None else owner.engine
        #: What it was launched with; None: that is not known.
        self.http = None if setup is None else setup.http or HTTPOptions()
        self.machine = None if setup is None else setup.machine
        self._grpc = None if setup is None else setup.grpc
        self._launched = launched
        self._owner = owner
        self._launcher_pid = os.getpid()

    @classmethod
    def find(cls, home: Home) -> Self | None:
        """Find the instance of a state folder; None: none runs there."""
        owner = find_owner(home)
        return None if owner is None else cls(home, None, owner)

    @classmethod
    def launch(cls, home: Home, setup: LaunchSetup, *, bound: bool) -> Self:
        """Launch one without waiting for it.

        Args:
            home: its state folder.
            setup: how it is to be.
            bound: True: it ends with this process, however that ends.

        Raises:
            InstanceError: no process can be started here.
            ModuleNotFoundError: the engine is not installed.
        """
        require_engine((setup.engine or LOCAL_ENGINE).engine)
        return cls(home, local.launch(home, setup, bound), None, setup)

    @classmethod
    def find_other(cls, home: Home, pid: int) -> Self | None:
        """Find the instance that another program has begun to start at the same moment.

        Args:
            home: its state folder.
            pid: of the supervisor that could not have the folder.
        """
        deadline = time.monotonic() + _NAME_LIMIT_S
        while is_held(home) and time.monotonic() < deadline:
            if (found := cls.find(home)) is not None:
                return found if found.pid != pid else None
            time.sleep(_BETWEEN_LOOKS_S)
        return None

    # ---------------------------------------------------------------------- its processes

    @property
    def joined(self) -> bool:
        """Somebody else launched it; of one in a cluster that is known once it is ready."""
        return self._launched is None or self._launched.joined

    @property
    def was_launched(self) -> bool:
        """This program has launched it, or what has joined it for this state folder."""
        return self._launched is not None

    @property
    def cluster(self) -> str:
        """Address of the Ray cluster that it runs on, as Ray tells it; empty: of none, or not known."""
        owner = self.owner
        return "" if owner is None else owner.cluster

    @property
    def owner(self) -> Owner | None:
        """Who holds its folder; of one that this program launched that is known once it is ready."""
        return find_owner(self.home) if self._owner is None else self._owner

    @property
    def pid(self) -> int:
        """Of its supervisor."""
        return self._launched.pid if self._launched is not None else self._known_owner.pid

    @property
    def _known_owner(self) -> Owner:
        assert self._owner is not None
        return self._owner

    def wait_ready(self) -> str:
        """Wait until it is up; return the URL of its front door, empty without one.

        Raises:
            InstanceError: it cannot come up; says why and what to do.
        """
        if self._launched is not None:
            return self._launched.wait_ready(START_LIMIT_S).http_url
        if self.engine == "ray":
            self._wait_known()
        return self._known_owner.http_url

    def _wait_known(self) -> None:
        """Wait for what somebody else starts: on Ray it is in the folder before it is up.

        Raises:
            InstanceError: it does not come up.
        """
        deadline = time.monotonic() + START_LIMIT_S
        while not self._known_owner.cluster:
            now = find_owner(self.home)
            if now is None or now.pid != self.pid or time.monotonic() >= deadline:
                raise InstanceError(
                    f"The instance in {self.home.root} (pid {self.pid}), which another program starts, "
                    f"does not come up; see {self.home.logs}."
                )
            self._owner = now
            time.sleep(_BETWEEN_LOOKS_S)

    @property
    def grpc_address(self) -> str:
        """`host:port` where it serves gRPC, once it is ready; empty without."""
        if self._launched is not None:
            return self._launched.wait_ready(START_LIMIT_S).grpc_address
        return self._known_owner.grpc_address

    @property
    def grpc_digest(self) -> str:
        """Tells its gRPC setup from others; empty without gRPC."""
        return digest(self._grpc) if self._launched is not None else self._known_owner.grpc_digest

    def is_alive(self) -> bool:
        """Its supervisor runs."""
        if self._launched is not None:
            return not self._launched.wait_gone(0.0)
        owner = find_owner(self.home)
        return owner is not None and owner.pid == self._known_owner.pid

    async def wait_gone(self) -> None:
        """Wait until its supervisor has ended."""
        try:
            fd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        # A pidfd becomes readable when its process ends.
        loop.add_reader(fd, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(fd)
            os.close(fd)
        if self._launched is not None:
            # Our child: the kernel keeps what is left of it until somebody asks.
            self._launched.wait_gone(0.0)

    def was_killed(self) -> bool:
        """Say of one that has ended whether it was killed; False: it ended in good order."""
        left = left_behind(self.home)
        return left is not None and left.pid == self.pid

    def force_end(self, timeout_s: float = EXIT_LIMIT_S) -> None:
        """End it without asking its controller; kill it after `timeout_s`.

        A process that was forked off the launching one leaves it alone.
        """
        if self._launched is None:
            local.end(self._known_owner, timeout_s)
        elif os.getpid() == self._launcher_pid:
            self._launched.end(timeout_s)

    def abandon(self) -> None:
        """Let go of it; returns when it has ended, if it is bound to this process."""
        if self._launched is not None:
            self._launched.abandon()

    def release(self) -> None:
        """Let go of it: a bound instance ends, another one stays."""
        if self._launched is not None:
            self._launched.release()


def require_engine(engine: str) -> None:
    """See that an engine is installed, before anything is started.

    Raises:
        ModuleNotFoundError: it is not; says how to install it.
    """
    if engine == "ray" and importlib.util.find_spec("ray") is None:
        raise ModuleNotFoundError(
            "The engine 'ray' needs Ray, which is not installed: pip install 'remora[ray]'.",
            name="ray",
        )
