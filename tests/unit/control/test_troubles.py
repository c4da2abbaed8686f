"""Processes that are no replicas and do not stay are told of."""

from __future__ import annotations

import pytest
from tests.unit.control.rig import rig

from remora.engine.base import SystemProcess
from remora.testing.virtual_time import run


def test_a_process_that_ends_again_and_again_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    there = [
        SystemProcess("controller", 1, 7),
        SystemProcess("proxy-1", 0, 9, crashes=5),
        SystemProcess("proxy-2", 2, 1, crashes=1),
    ]

    async def processes() -> list[SystemProcess]:
        return there

    async def main() -> None:
        async with rig() as r:
            monkeypatch.setattr(r.controller.engine, "system_processes", processes)
            status = await r.admin.status()
            assert [each.status for each in status.proxies] == ["UNHEALTHY", "HEALTHY"]
            (trouble,) = status.troubles
            assert trouble.startswith(
                "proxy-1 has ended 5 times in a row, each time soon after its"
            )

    run(main())
