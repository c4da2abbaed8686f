"""Prompts to the replica that has seen their beginning, and so has its keys and values cached."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

from remora.config import require_number
from remora.core.routing.prefix_tree import PrefixTree
from remora.errors import ConfigError
from remora.request_router import (
    PendingRequest,
    PowerOfTwoChoicesRequestRouter,
    ReplicaID,
    RunningReplica,
)

__all__ = ["PrefixCacheAffinityRouter", "prompt_of"]

_FIELD = "request_router_kwargs"
#: Of one replica, whatever the arguments say: memory is bounded.
MAX_CHARS = 10_000_000


class PrefixCacheAffinityRouter(PowerOfTwoChoicesRequestRouter):
    """A prompt goes to the replica that has seen most of its beginning, unless that is overloaded.

    For calls by handle whose first argument is a prompt, or has one: a text, or a mapping or object
    with `messages` or `prompt`. All others, and all HTTP requests, get power of two choices.
    Each process that calls remembers what it sent itself.
    """

    def initialize_state(
        self,
        imbalanced_threshold: float = math.inf,
        match_rate_threshold: float = 0.1,
        do_eviction: bool = True,
        eviction_threshold_chars: int = 400_000,
        eviction_target_chars: int = 360_000,
        eviction_interval_secs: float = 10,
    ) -> None:
        """Take the arguments.

        Args:
            imbalanced_threshold: when the queues of two replicas differ by more, prompts do not
                matter until they are even again.
            match_rate_threshold: share of a prompt that must have been seen.
            do_eviction: forget what was used longest ago when there is too much.
            eviction_threshold_chars: more than this of one replica is too much.
            eviction_target_chars: how much is left then.
            eviction_interval_secs: seconds between two looks at that.
        """
        require_number(f"{_FIELD}['imbalanced_threshold']", imbalanced_threshold, low=0)
        require_number(f"{_FIELD}['match_rate_threshold']", match_rate_threshold, low=0, high=1)
        require_number(
            f"{_FIELD}['eviction_target_chars']", eviction_target_chars, low=0, whole=True
        )
        require_number(
            f"{_FIELD}['eviction_threshold_chars']",
            eviction_threshold_chars,
            low=eviction_target_chars,
            high=MAX_CHARS,
            whole=True,
        )
        require_number(f"{_FIELD}['eviction_interval_secs']", eviction_interval_secs, low=0)
        if not isinstance(do_eviction, bool):
            raise ConfigError(f"{_FIELD}['do_eviction']", do_eviction, "must be True or False")
        self._imbalanced_threshold = imbalanced_threshold
        self._match_rate_threshold = match_rate_threshold
        self._limits = (MAX_CHARS, MAX_CHARS)
        if do_eviction:
            self._limits = (eviction_threshold_chars, eviction_target_chars)
        self._eviction_interval_s = eviction_interval_secs
        self._evicted_at = time.monotonic()
        self._tree = PrefixTree()

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Forget replicas that are gone."""
        super().update_replicas(replicas)
        self._tree.keep(str(replica.replica_id) for replica in replicas)

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Those that have seen the beginning, or else least at all; then two at random."""
        others = await super().choose_replicas(candidate_replicas, pending_request)
        prompt = "" if pending_request is None else prompt_of(pending_request.args)
        loads = [replica.queue_length for replica in candidate_replicas]
        if not prompt or not loads or max(loads) - min(loads) > self._imbalanced_threshold:
            return others
        matched, owners = self._tree.match(prompt)
        if matched < self._match_rate_threshold * len(prompt) or not matched:
            owners = self._tree.emptiest()
        return [[r for r in candidate_replicas if r.replica_id in owners], *others]

    def on_request_routed(
        self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any
    ) -> None:
        """Remember who has seen the prompt."""
        prompt = prompt_of(pending_request.args)
        if not prompt:
            return
        self._tree.add(prompt, str(replica_id))
        now = time.monotonic()
        if now - self._evicted_at >= self._eviction_interval_s:
            self._evicted_at = now
            self._tree.evict(*self._limits)
        elif self._tree.chars(str(replica_id)) > MAX_CHARS:
            self._tree.evict(MAX_CHARS, MAX_CHARS)


def prompt_of(args: tuple[Any, ...]) -> str:
    """Find the prompt in the arguments of a call; empty: there is none. Pure."""
    if not args:
        return ""
    request = args[0]
    if isinstance(request, str):
        return request
    messages = _part(request, "messages")
    if isinstance(messages, (list, tuple)):
        return "\n".join(f"{_part(m, 'role')}: {_text(_part(m, 'content'))}" for m in messages)
    return _text(_part(request, "prompt"))


def _part(holder: Any, name: str) -> Any:
    return holder.get(name) if isinstance(holder, Mapping) else getattr(holder, name, None)


def _text(content: Any) -> str:
    """Text of a content, which may be a list of parts of which some are text."""
    if isinstance(content, str):
        return content
    if isinstance(content, (list, tuple)):
        return "".join(
            part if isinstance(part, str) else _text(_part(part, "text")) for part in content
        )
    return ""
