"""The public functions inside a running event loop, which they block."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import remora as serve
from remora.errors import InstanceError

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(60)]


@serve.deployment
class Version:
    def __init__(self, number: int) -> None:
        self.number = number

    def get(self) -> int:
        return self.number


@pytest.fixture(params=[False, True], ids=["processes", "one process"])
def local(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, remora_home: Path
) -> Iterator[bool]:
    monkeypatch.setenv("REMORA_HOME", str(remora_home))
    if not request.param:
        serve.start(http_options={"port": 0})
    yield request.param
    serve.shutdown()


async def test_a_handle_sees_what_this_process_has_deployed_before(local: bool) -> None:
    def run(number: int) -> Any:
        return serve.run(Version.bind(number), route_prefix=None, _local_testing_mode=local)

    first = run(1)
    seen = [await first.get.remote()]
    second = run(2)
    # Nothing lies between `run` and the calls in which the loop could have heard of it.
    seen += [await second.get.remote(), await first.get.remote()]
    serve.delete("default")
    seen.append(await run(3).get.remote())
    seen.append(await first.get.remote())
    assert seen == [1, 2, 2, 3, 3]


def test_a_failed_start_leaves_nothing_in_the_way(
    monkeypatch: pytest.MonkeyPatch, remora_home: Path
) -> None:
    monkeypatch.setenv("REMORA_HOME", str(remora_home))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InstanceError, match="port"):
            serve.start(http_options={"port": taken.getsockname()[1]})
        serve.shutdown()
        serve.start(http_options={"port": 0})
        assert serve.status().applications == {}
        serve.shutdown()
