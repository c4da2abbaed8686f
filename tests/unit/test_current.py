"""Running coroutines from anywhere, and options that differ from those of what runs."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from remora.config import HTTPOptions
from remora.current import refuse_other_options, run_coroutine
from remora.engine.launch import LaunchSetup, Owner
from remora.errors import ConfigError
from remora.home import Home
from remora.instance import Instance


async def answer() -> int:
    await asyncio.sleep(0)
    return 42


def test_runs_a_coroutine_without_a_loop() -> None:
    assert run_coroutine(answer()) == 42


async def test_runs_a_coroutine_inside_a_running_loop() -> None:
    assert run_coroutine(answer()) == 42


async def test_errors_come_out_of_the_other_thread() -> None:
    async def fail() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        run_coroutine(fail())


def test_options_that_differ_from_our_own_instance_are_named(tmp_path: Path) -> None:
    ours = Instance(Home(tmp_path), None, Owner(1, ""), LaunchSetup(HTTPOptions(port=1)))
    refuse_other_options(ours, HTTPOptions(port=1))
    with pytest.raises(ConfigError, match="port"):
        refuse_other_options(ours, HTTPOptions(port=2))


def test_options_that_differ_from_a_joined_instance_are_named(tmp_path: Path) -> None:
    joined = Instance(Home(tmp_path), None, Owner(1, "", "http://127.0.0.1:8000"))
    refuse_other_options(joined, HTTPOptions())
    with pytest.raises(ConfigError, match=r"port.*8000"):
        refuse_other_options(joined, HTTPOptions(port=9000))
    with pytest.raises(ConfigError, match="request_timeout_s"):
        refuse_other_options(joined, HTTPOptions(request_timeout_s=3))


def test_an_error_of_ours_shows_no_frames_of_the_loop_and_no_other_error() -> None:
    async def refuse() -> None:
        raise ConfigError("name", "x", "no")

    with pytest.raises(ConfigError) as caught:
        run_coroutine(refuse())
    assert caught.value.__context__ is None
    files = {Path(frame.path).name for frame in caught.traceback}
    assert files == {Path(__file__).name, "current.py"}
