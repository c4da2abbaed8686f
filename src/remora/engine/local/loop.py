"""A small event loop over `selectors`: callbacks for descriptors, messages for peers.

asyncio would cost the supervisor 7 MB of memory and 40 ms before its first fork.

Rules: one thread; a callback never blocks; nothing here knows what messages mean.
"""

from __future__ import annotations

import selectors
import socket
from collections.abc import Callable
from typing import Any

from remora.engine.local.protocol import LineError, Message, Peer


class Loop:
    """Watches descriptors and moves messages of peers."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._peers: set[Peer] = set()
        #: Called after a peer is gone.
        self.on_forget: Callable[[Peer], None] = lambda peer: None

    def watch(self, file: Any, callback: Callable[[], None]) -> None:
        """Call `callback` whenever `file` can be read."""
        self._selector.register(file, selectors.EVENT_READ, callback)

    def unwatch(self, file: Any) -> None:
        """Stop watching; do it before the file is closed."""
        self._selector.unregister(file)

    def run_once(self, timeout_s: float | None) -> None:
        """Wait for news, at most `timeout_s` (None: for ever), and call back for each."""
        for key, mask in self._selector.select(timeout_s):
            current = self._selector.get_map().get(key.fd)
            if current is None or current.data is not key.data:
                continue  # an earlier callback of this turn has closed it
            if mask & selectors.EVENT_READ:
                key.data()
            elif isinstance(key.fileobj, Peer):
                self._after_send(key.fileobj, key.fileobj.flush())

    def add_peer(
        self,
        sock: socket.socket,
        on_message: Callable[[Peer, Message], None],
        on_junk: Callable[[Exception], None],
    ) -> Peer:
        """Read messages from a socket.

        Args:
            sock: connected; closed when its peer is forgotten.
            on_message: may raise KeyError, TypeError or ValueError for a message that is wrong.
            on_junk: told why, before the connection is closed.
        """
        peer = Peer(sock)
        self._peers.add(peer)
        self.watch(peer, lambda: self._on_readable(peer, on_message, on_junk))
        return peer

    def _on_readable(
        self,
        peer: Peer,
        on_message: Callable[[Peer, Message], None],
        on_junk: Callable[[Exception], None],
    ) -> None:
        try:
            messages = peer.receive()
            for message in messages or ():
                on_message(peer, message)
        # Border: what comes from outside may be anything.
        except (LineError, KeyError, TypeError, ValueError) as error:
            on_junk(error)
            messages = None
        if messages is None:
            self.forget(peer)

    def tell(self, peer: Peer, message: Message) -> None:
        """Send a message, now or when there is room; a peer that is gone is forgotten."""
        self._after_send(peer, peer.send(message))

    def _after_send(self, peer: Peer, alive: bool) -> None:
        if not alive:
            self.forget(peer)
            return
        try:
            key = self._selector.get_key(peer)
        except (KeyError, ValueError):
            return
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if peer.has_unsent else 0)
        if key.events != events:
            self._selector.modify(peer, events, key.data)

    def forget(self, peer: Peer) -> None:
        """Close a peer. One that is watched without `add_peer` is its owner's to close."""
        if peer in self._peers:
            self._peers.discard(peer)
            self.unwatch(peer)
            peer.close()
            self.on_forget(peer)

    def close_in_fork(self) -> None:
        """Close everything that is watched, in a forked child."""
        self._selector.close()
        for peer in self._peers:
            peer.close()
