"""Shows Ray what finds no room, so that its autoscaler gets nodes for it.

Theory of operation: the autoscaler looks at placement groups that wait for resources. So there is
one for each replica that waits: a group that nobody runs in. When a node comes, the controller
places the replica there and wants no more, and the group goes in the same moment. One that Ray finds
room for all the same goes, too, so that it keeps nobody out, and is made again a while later: the
controller may know of reasons that Ray does not, but what was to lie there may also have been
on its way.

Concurrency: one event loop; what blocks on Ray's head is handed to `ask`.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group

from remora.engine.base import Missing
from remora.engine.ray.groups import WAITING, group_name
from remora.engine.ray.head import Ask
from remora.types import Seconds

_log = logging.getLogger("remora.engine")

#: Each makes an autoscaler think of one more place; nodes that come for these hold others, too.
_MOST_GROUPS = 100
_LOOK_EVERY_S: Seconds = 0.5
_TRY_AGAIN_S: Seconds = 5.0
#: One that Ray had room for is made again after this, then after twice as long, up to the most.
_FIRST_PAUSE_S: Seconds = 2.0
_MOST_PAUSE_S: Seconds = 60.0
#: Ray takes no bundle without an amount: so little is free on every node.
_NOTHING = {"CPU": 0.001}


@dataclass
class _Shown:
    """What waits, and the group that stands for it.

    Attributes:
        pause_s: how long it stays away when Ray has room for it.
        group: None: there is none just now.
        again_at: when to make it again (monotonic); None: never, Ray takes no such group.
    """

    missing: Missing
    pause_s: Seconds
    group: Any = None
    again_at: Seconds | None = None


class RoomSeeker:
    """The placement groups that stand for what waits."""

    def __init__(
        self,
        namespace: str,
        *,
        ask: Ask,
        spawn: Callable[[Coroutine[Any, Any, None], str], None],
    ) -> None:
        self._namespace = namespace
        self._ask = ask
        self._spawn = spawn
        self._shown: list[_Shown] = []
        self._wanted: tuple[Missing, ...] = ()
        self._is_busy = False

    def seek(self, missing: Sequence[Missing]) -> None:
        """Show these, and nothing else."""
        wanted = tuple(missing[:_MOST_GROUPS])
        if wanted == self._wanted:
            return
        self._wanted = wanted
        if not self._is_busy:
            self._is_busy = True
            self._spawn(self._follow(), "demand for the autoscaler")

    async def _follow(self) -> None:
        shown: tuple[Missing, ...] | None = None
        while shown != self._wanted or self._is_to_follow():
            try:
                if shown != self._wanted:
                    wanted = self._wanted
                    await self._ask(self._show, wanted)
                    shown = wanted
                await asyncio.sleep(_LOOK_EVERY_S)
                await self._ask(self._look)
            # Border: Ray's client raises what it likes when its head is away.
            except Exception as error:  # noqa: BLE001
                _log.warning("Ray's autoscaler is not told of what waits for room: %s", error)
                await asyncio.sleep(_TRY_AGAIN_S)
        self._is_busy = False

    def _is_to_follow(self) -> bool:
        return any(each.group is not None or each.again_at is not None for each in self._shown)

    def _show(self, wanted: tuple[Missing, ...]) -> None:
        new = list(wanted)
        kept = []
        for each in self._shown:
            if each.missing in new:
                new.remove(each.missing)
                kept.append(each)
            elif each.group is not None:
                remove_placement_group(each.group)
        self._shown = kept
        for missing in new:
            self._shown.append(made := _Shown(missing, _FIRST_PAUSE_S))
            self._make_for(made)

    def _look(self) -> None:
        """Drop what Ray had room for, and make again what it may have none for by now."""
        now = time.monotonic()
        for each in self._shown:
            if each.group is not None:
                if placement_group_table(each.group)["state"] != "PENDING":
                    remove_placement_group(each.group)
                    each.group, each.again_at = None, now + each.pause_s
                    each.pause_s = min(2 * each.pause_s, _MOST_PAUSE_S)
            elif each.again_at is not None and now >= each.again_at:
                self._make_for(each)

    def _make_for(self, shown: _Shown) -> None:
        shown.again_at = None
        try:
            shown.group = self._make(shown.missing)
        except (ValueError, TypeError) as error:
            # Nothing that a node could ever have; `status` says so.
            _log.debug("Ray takes no group for %s: %s", shown.missing, error)

    def _make(self, missing: Missing) -> Any:
        return placement_group(
            [dict(bundle) or _NOTHING for bundle in missing.bundles],
            strategy=missing.strategy,
            # Ray takes each name once, and frees it some time after the group is gone.
            name=group_name(self._namespace, f"{WAITING} {secrets.token_hex(8)}"),
            bundle_label_selector=[dict(each) for each in missing.selectors],
        )
