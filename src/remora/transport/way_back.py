"""How a program finds the controller again where the socket to it can go while the instance stays.

With one node it cannot. In a cluster, a node that runs nothing of an instance has no such socket; one
comes when it is asked for. Who asks in which way, the engine knows.

Rules: the only state is which engine that is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from remora.home import Home

#: Makes the socket of a state folder come back, if it can; blocks and raises nothing.
Restore = Callable[[Home], None]

_restore: Restore | None = None


def use(restore: Restore) -> None:
    """Say how a socket that is gone comes back."""
    global _restore
    _restore = restore


async def see_to_socket(home: Home) -> None:
    """Have the socket to the controller come back if it is gone, and anybody knows how."""
    if _restore is not None and not home.controller_socket.exists():
        try:
            restoring = asyncio.get_running_loop().run_in_executor(None, _restore, home)
        except RuntimeError:
            # At the end of the interpreter there are no new threads, and nobody who needs it back.
            return
        await restoring
