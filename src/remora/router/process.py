"""The routing clients of this process: one for each loop that calls, one in the background.

The loop of the caller is the fast path, where nothing crosses threads. Callers without a loop
share the loop of a thread of its own, which is started by the first of them.

Rules: what belongs to a loop is let go of when that loop ends. Nothing is waited for without a
bound.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections.abc import AsyncGenerator
from concurrent.futures import Future
from contextlib import suppress

from remora.errors import InstanceError
from remora.home import Home
from remora.router.client import RoutingClient
from remora.transport.membership import join_by_folder
from remora.types import DeploymentID, Seconds

#: Until the background loop must run, or a replica's own loop must answer. Either takes
#: milliseconds unless the machine is out of something or the loop is blocked.
_START_LIMIT_S: Seconds = 10.0
#: Until the calls on an ending background loop have handed out that they failed.
_WIND_UP_S: Seconds = 2.0
#: What the background thread has to end at the end of the process.
_EXIT_LIMIT_S: Seconds = 2.0


class _ProcessRouting:
    """What this process has; the lock guards the start and the end of the background client."""

    def __init__(self) -> None:
        self.home: Home | None = None
        self.name = ""
        self.lock = threading.Lock()
        self.clients: dict[asyncio.AbstractEventLoop, RoutingClient] = {}
        #: Keep the generators alive that notice the end of a caller's loop.
        self.endings: dict[RoutingClient, AsyncGenerator[None, None]] = {}
        self.background: RoutingClient | None = None
        #: Runs the loop of the background client.
        self.thread: threading.Thread | None = None
        #: The loop that a replica's process runs anyway; None: there is none.
        self.own_loop: asyncio.AbstractEventLoop | None = None
        self.own_thread = 0


_process = _ProcessRouting()
_closing: set[asyncio.Task[None]] = set()
#: What a forked process got from its parent.
_inherited: list[_ProcessRouting] = []


def use_instance(home: Home, name: str) -> None:
    """Say which instance this process calls, before its first call."""
    _process.home = home
    _process.name = name
    join_by_folder(home)


def use_own_loop(loop: asyncio.AbstractEventLoop) -> None:
    """Let threads without a loop call over this one, which runs in the calling thread."""
    _process.own_loop = loop
    _process.own_thread = threading.get_ident()


def instance_home() -> Home | None:
    """The instance that this process calls; None: none yet."""
    return _process.home


def knows_deployment(deployment: DeploymentID) -> bool:
    """Whether a snapshot of this process names a deployment. In any thread."""
    clients = list(_process.clients.values())
    return any(deployment in client.snapshot.deployments for client in clients)


def adopt_client(client: RoutingClient) -> None:
    """Use this client for calls from its loop (a proxy or replica made its own)."""
    _forget_closed_loops()
    _process.clients[client.loop] = client


def routing_client(loop: asyncio.AbstractEventLoop) -> RoutingClient:
    """The client of a loop; must be called on that loop.

    Raises:
        InstanceError: this process is in no instance.
    """
    client = _process.clients.get(loop)
    if client is None:
        client = RoutingClient(_require_home(), _process.name)
        client.start()
        _forget_closed_loops()
        _process.clients[loop] = client
        _close_with_loop(client)
    return client


def background_client() -> RoutingClient:
    """The client of a thread of its own, for callers without a loop.

    Raises:
        InstanceError: this process is in no instance, or no such thread can be started.
    """
    loop = _process.own_loop
    # On the loop itself the caller is going to block: only another thread can serve it.
    if loop is not None and threading.get_ident() != _process.own_thread:
        return _process.clients.get(loop) or _ask_own_loop(loop)
    with _process.lock:
        if _process.background is None:
            _process.background = _start_background()
        return _process.background


def expect_news() -> None:
    """This process has changed what runs: calls wait until their routers have heard of it.

    The loop that has done it has stood still meanwhile, and has not even read the news.
    """
    try:
        here = asyncio.get_running_loop()
    except RuntimeError:
        here = None
    _forget_closed_loops()
    for client in list(_process.clients.values()):
        if client.loop is here:
            client.fall_behind()
        else:
            with suppress(RuntimeError):  # its loop has ended
                client.loop.call_soon_threadsafe(client.fall_behind)


def routing_client_behind(loop: asyncio.AbstractEventLoop) -> RoutingClient | None:
    """The client of a loop if its calls should wait; None: they need not."""
    client = _process.clients.get(loop)
    return client if client is not None and client.is_behind else None


def forget_instance() -> None:
    """Drop the background client and the instance; the next call needs a new one."""
    with _process.lock:
        background, _process.background = _process.background, None
        _process.home = None
        clients = list(_process.clients.values())
        _process.clients.clear()
    for client in clients:
        if client is not background:
            with suppress(RuntimeError):  # its loop has ended, and the connections with it
                client.loop.call_soon_threadsafe(_close, client)
    if background is not None:
        with suppress(RuntimeError):
            background.loop.call_soon_threadsafe(background.loop.stop)


@atexit.register
def _end_thread() -> None:
    """See the background thread end: uvloop crashes where the interpreter goes under its feet."""
    thread, background = _process.thread, _process.background
    if thread is None or thread is threading.current_thread():
        return
    if background is not None:
        with suppress(RuntimeError):
            background.loop.call_soon_threadsafe(background.loop.stop)
    thread.join(_EXIT_LIMIT_S)


def _close(client: RoutingClient) -> None:
    task = client.loop.create_task(client.close())
    # A loop holds its tasks weakly.
    _closing.add(task)
    task.add_done_callback(_closing.discard)


def _require_home() -> Home:
    if _process.home is None:
        raise InstanceError(
            "This process is in no Remora instance: call remora.run(app) or remora.start() first"
        )
    return _process.home


# ------------------------------------------------------------------------ the background loop


def _ask_own_loop(loop: asyncio.AbstractEventLoop) -> RoutingClient:
    async def find() -> RoutingClient:
        return routing_client(loop)

    asked = asyncio.run_coroutine_threadsafe(find(), loop)
    try:
        return asked.result(_START_LIMIT_S)
    except TimeoutError:
        asked.cancel()
        raise InstanceError(
            f"A call from a thread found the event loop of {_process.name} blocked for "
            f"{_START_LIMIT_S:g} s. Something in it does not await: run it in a thread of its own."
        ) from None


def _start_background() -> RoutingClient:
    started: Future[RoutingClient] = Future()
    arguments = (_require_home(), _process.name, started)
    thread = threading.Thread(
        target=_run_background, args=arguments, name="remora-routing", daemon=True
    )
    try:
        thread.start()
        _process.thread = thread
        return started.result(_START_LIMIT_S)
    except Exception as error:
        # A thread that comes up after all finds nobody who wants it.
        started.cancel()
        reason = f"it did not within {_START_LIMIT_S:g} s" if not str(error) else str(error)
        raise InstanceError(
            f"The thread for calls from code without an event loop could not start: {reason}. "
            "Is this process out of threads, memory or file descriptors?"
        ) from error


def _run_background(home: Home, name: str, started: Future[RoutingClient]) -> None:
    async def begin() -> RoutingClient:
        client = RoutingClient(home, name)
        client.start()
        return client

    try:
        import uvloop

        loop = uvloop.new_event_loop()
        asyncio.set_event_loop(loop)
        client = loop.run_until_complete(begin())
    except BaseException as error:  # noqa: BLE001 - border: handed over to the waiting caller
        if started.set_running_or_notify_cancel():
            started.set_exception(error)
        return
    try:
        if started.set_running_or_notify_cancel():
            _process.clients[loop] = client
            started.set_result(client)
            loop.run_forever()
        loop.run_until_complete(_wind_up(client))
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        if _process.clients.get(loop) is client:
            del _process.clients[loop]
        loop.close()


async def _wind_up(client: RoutingClient) -> None:
    """Close the connections, and see that every thread that waits for an answer gets one."""
    await client.close()
    for _ in range(2):
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        if not tasks:
            break
        _, late = await asyncio.wait(tasks, timeout=_WIND_UP_S)
        for task in late:
            task.cancel()
    # What they have set is handed over by callbacks.
    await asyncio.sleep(0)


# --------------------------------------------------------------------------- the ends of loops


def _close_with_loop(client: RoutingClient) -> None:
    """Arrange that a caller's loop, when it ends, closes our connections on it.

    A loop shuts its asynchronous generators down before it closes (`asyncio.run` does), which
    is the only hook that a library has.
    """

    async def ending() -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            await client.close()
            _process.endings.pop(client, None)
            if _process.clients.get(client.loop) is client:
                del _process.clients[client.loop]

    generator = ending()
    # To its `yield`, in which nothing waits: from here on the loop knows it.
    with suppress(StopIteration):
        generator.__anext__().send(None)
    _process.endings[client] = generator


def _forget_closed_loops() -> None:
    """Let go of loops that were closed without their generators."""
    for loop in list(_process.clients):
        if loop.is_closed():
            _process.clients.pop(loop, None)
    for client in list(_process.endings):
        if client.loop.is_closed():
            _process.endings.pop(client, None)


def _start_over_in_child() -> None:
    """After a fork: the parent's threads and loops are not here, so begin with none.

    What was inherited is held for ever instead of freed: closing a loop or a connection here
    would take descriptors out of the epoll that parent and child share.
    """
    global _process
    parents = _process
    _inherited.append(parents)
    _process = _ProcessRouting()
    _process.home, _process.name = parents.home, parents.name


os.register_at_fork(after_in_child=_start_over_in_child)
