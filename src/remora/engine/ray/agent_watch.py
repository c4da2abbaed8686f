"""Asks the agents now and then whether they live, for the controller.

An agent that lives and does nothing passes no signals on, and nobody reaches the controller through it. Ray
is told to start it again; the proxies give it back what it held.

Concurrency: one event loop; what blocks on Ray's head is handed to `ask`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping

from remora.engine.ray import fleet
from remora.engine.ray.cluster import Cluster
from remora.engine.ray.end import ask_agent
from remora.engine.ray.head import Ask
from remora.engine.ray.setup import find_node, find_staff
from remora.engine.ray.silence import LOOK_EVERY_S, SILENT_S, Silence
from remora.engine.ray.staffing import Phase
from remora.errors import ConnectionLostError, EngineError, RemoteError

_log = logging.getLogger("remora.engine")


class AgentWatch:
    """The agents as one controller hears them."""

    def __init__(self, cluster: Cluster, token: str, nodes: Mapping[str, object], ask: Ask) -> None:
        """Make it.

        Args:
            cluster: of the instance.
            token: of the instance.
            nodes: those that are there, by their ids; looked at again and again.
            ask: for what blocks.
        """
        self._cluster = cluster
        self._token = token
        self._nodes = nodes
        self._ask = ask
        #: Answers of each agent.
        self._answers: dict[str, int] = {}
        self._silence: Silence[str] = Silence()

    async def watch(self) -> None:
        """Ask for ever."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            await asyncio.gather(*map(self._hear, list(self._nodes)))
            self._answers = {id_: self._answers.get(id_, 0) for id_ in self._nodes}
            silent = self._silence.look(self._answers, loop.time())
            if silent:
                await self._start_again(silent)

    async def _hear(self, node_id: str) -> None:
        try:
            node = await self._ask(find_node, self._cluster, node_id)
            if node is not None:
                await ask_agent(node, self._token, "ping")
            elif await self._is_missing(node_id):
                return
            self._answers[node_id] = self._answers.get(node_id, 0) + 1
        except (ConnectionLostError, EngineError, RemoteError, TimeoutError) as error:
            _log.debug("The agent of node %s does not answer: %s", node_id[:12], error)

    async def _is_missing(self, node_id: str) -> bool:
        """There is to be an agent, and it has no record: nobody finds it, as if it did not answer.

        Where none is to be nobody is silent: it has left (`staffing`), or is on its way.
        """
        staff = await self._ask(find_staff, self._cluster, node_id)
        return staff is not None and staff.phase in (Phase.HERE, Phase.CLOSING)

    async def _start_again(self, silent: Iterable[str]) -> None:
        try:
            actors = await self._ask(self._cluster.actors)
            for node_id in silent:
                agent = actors.get(name := fleet.agent_name(node_id))
                # One that has no process is on its way.
                if agent is not None and agent.pid:
                    _log.error(
                        "%s (pid %d) has not answered for %g s: Ray is told to start it again",
                        name,
                        agent.pid,
                        SILENT_S,
                    )
                    await self._ask(self._cluster.start_again, name)
                # Not in the same breath again: it takes a while.
                self._answers[node_id] += 1
        except EngineError as error:
            _log.warning("Agents that do not answer are not started again: %s", error)
