"""Shows Ray what finds no room, so that its autoscaler gets nodes for it.

Theory of operation: the autoscaler looks at placement groups that wait for resources. So there is
one for each replica that waits: a group that nobody runs in. When a node comes, the controller
places the replica there and wants no more, and the group goes in the same moment. One that Ray finds
room for all the same (the controller knows of reasons that Ray does not) goes, too, so that it
keeps nobody out.

Concurrency: one event loop; what blocks on Ray's head is handed to `ask`.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group

from remora.engine.base import Missing
from remora.engine.ray.groups import WAITING, group_name
from remora.engine.ray.nodes import Ask
from remora.types import Seconds

_log = logging.getLogger("remora.engine")

#: Each makes an autoscaler think of one more place; nodes that come for these hold others, too.
_MOST_GROUPS = 100
_LOOK_EVERY_S: Seconds = 0.5
_TRY_AGAIN_S: Seconds = 5.0
#: Ray takes no bundle without an amount: so little is free on every node.
_NOTHING = {"CPU": 0.001}


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
        #: None instead of a group: Ray had room for it.
        self._groups: list[tuple[Missing, Any]] = []
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
        while shown != self._wanted or any(group for _, group in self._groups):
            try:
                if shown != self._wanted:
                    wanted = self._wanted
                    await self._ask(self._show, wanted)
                    shown = wanted
                await asyncio.sleep(_LOOK_EVERY_S)
                await self._ask(self._drop_placed)
            # Border: Ray's client raises what it likes when its head is away.
            except Exception as error:  # noqa: BLE001
                _log.warning("Ray's autoscaler is not told of what waits for room: %s", error)
                await asyncio.sleep(_TRY_AGAIN_S)
        self._is_busy = False

    def _show(self, wanted: tuple[Missing, ...]) -> None:
        new = list(wanted)
        kept = []
        for missing, group in self._groups:
            if missing in new:
                new.remove(missing)
                kept.append((missing, group))
            elif group is not None:
                remove_placement_group(group)
        self._groups = kept
        for each in new:
            try:
                self._groups.append((each, self._make(each)))
            except (ValueError, TypeError) as error:
                # Nothing that a node could ever have; `status` says so.
                _log.debug("Ray takes no group for %s: %s", each, error)
                self._groups.append((each, None))

    def _drop_placed(self) -> None:
        for number, (missing, group) in enumerate(self._groups):
            if group is not None and placement_group_table(group)["state"] != "PENDING":
                remove_placement_group(group)
                self._groups[number] = missing, None

    def _make(self, missing: Missing) -> Any:
        return placement_group(
            [dict(bundle) or _NOTHING for bundle in missing.bundles],
            strategy=missing.strategy,
            # Ray takes each name once, and frees it some time after the group is gone.
            name=group_name(self._namespace, f"{WAITING} {secrets.token_hex(8)}"),
            bundle_label_selector=[dict(each) for each in missing.selectors],
        )
