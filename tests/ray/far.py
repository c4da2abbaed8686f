"""An instance that was started on a host of its own, and requests to it that can be told apart."""

from __future__ import annotations

import functools
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
from tests.e2e.instances import REMORA, Instance
from tests.e2e.load import Answer, Load, ask, get
from tests.e2e.waiting import until_async
from tests.ray.hosts import Hosts

from remora.home import Home
from remora.options.node import PLAIN, NodeOptions
from remora.wire.control import InstanceStatus

HTTP_PORT = 8000


class FarInstance(Instance):
    """An instance on the first host; this process works with it through its state folder."""

    def __init__(self, hosts: Hosts, node: NodeOptions = PLAIN) -> None:
        self._hosts = hosts
        self.home = Home(hosts.folder / "home")
        files = {f"--node-{name.replace('_', '-')}": getattr(node, name) for name in _FILES}
        hosts.hosts[0].run(
            REMORA,
            *("start", "--engine", "ray", "--address", hosts.address),
            *("--http-host", "0.0.0.0", "--http-port", str(HTTP_PORT)),
            *(word for flag, path in files.items() if path for word in (flag, path)),
            REMORA_HOME=str(self.home.root),
            **hosts.environment,
        )
        self.url = self.url_of(0)

    def url_of(self, index: int) -> str:
        """The front door of a host."""
        return f"http://{self._hosts.hosts[index].address}:{HTTP_PORT}"

    async def wait_joined(self) -> None:
        """Wait until each host takes replicas."""

        def are_there(status: InstanceStatus) -> bool:
            fit = [node for node in status.nodes if not node.refusal]
            return len(fit) == len(self._hosts.hosts)

        await self.wait(are_there, "all hosts take replicas", 60.0)

    async def wait_doors(self) -> None:
        """Wait until each host has its front door, which it has beside replicas."""

        async def answers(index: int) -> bool:
            return (await get(f"{self.url_of(index)}/-/livez")).status == 200

        for index in range(len(self._hosts.hosts)):
            what = f"host {index + 1} has its front door"
            await until_async(functools.partial(answers, index), what, 60.0)

    def end(self) -> None:
        """Nothing: it ends with its hosts."""


_FILES = NodeOptions.__struct_fields__


async def nodes_of(instance: Instance, deployment: str, name: str) -> Counter[str]:
    """How many replicas answer from each node."""
    handle: Any = instance.handle(deployment, name)
    return Counter(await handle.broadcast("where").results_async(return_exceptions=True))


class NumberedLoad(Load):
    """Load whose requests have numbers, so that what ran twice is seen."""

    def __init__(self, session: aiohttp.ClientSession, url: str, rate: float, method: str) -> None:
        super().__init__(session, url, rate, method)
        self._number = 0

    async def _one(self) -> None:
        self._number += 1
        url = f"{self._url}?id={self._method}-{self._number}"
        self.answers.append(await ask(self._session, url, method=self._method))


def ran(folder: Path) -> Counter[str]:
    """How often each request was begun by a replica."""
    return Counter(
        line.split()[0] for path in folder.glob("*.ran") for line in path.read_text().splitlines()
    )


def told(answers: list[Answer]) -> dict[Any, int]:
    """Failures by kind, for messages."""
    return Counter(str(each.error or (each.status, each.body[:200])) for each in answers)
