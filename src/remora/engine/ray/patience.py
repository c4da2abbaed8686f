"""Waiting in threads for what takes long: nodes that come up, proxies that finish, the end of all.

asyncio's own threads are a few more than there are processors: as many nodes that do not come up
would hold up all else that blocks, and the shutdown with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")

#: So many nodes come or leave at once; more wait for their turn. Each asks Ray's head now and then.
MOST_NODES = 64

# Threads come with the first that needs them.
_nodes = ThreadPoolExecutor(MOST_NODES, "remora-nodes")
_end = ThreadPoolExecutor(1, "remora-end")


async def wait_for_node(call: Callable[..., T], /, *args: Any) -> T:
    """Do what blocks until a node has come or left; raises what that raises."""
    return await asyncio.get_running_loop().run_in_executor(_nodes, call, *args)


async def wait_for_end(call: Callable[..., T], /, *args: Any) -> T:
    """Do what ends everything, whatever else is waited for; raises what that raises."""
    return await asyncio.get_running_loop().run_in_executor(_end, call, *args)
