"""How a program finds the controller again whose socket is gone."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from remora.home import Home
from remora.transport import way_back


async def test_at_the_end_of_the_interpreter_nobody_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home(tmp_path)
    asked: list[Home] = []
    monkeypatch.setattr(way_back, "_restore", asked.append)
    await way_back.see_to_socket(home)
    assert asked == [home]
    await asyncio.get_running_loop().shutdown_default_executor()
    await way_back.see_to_socket(home)
    assert asked == [home]
