"""`remora shutdown` asks, and takes no for an answer."""

from __future__ import annotations

import io
from typing import Any

import click
import pytest

from remora.cli import lifecycle
from remora.cli.errors import FAILED_STATUS, CommandError


class Running:
    pid = 7
    stopped = False
    engine = "local"
    cluster = ""

    async def shut_down(self) -> bool:
        self.stopped = True
        return True


def shutdown(monkeypatch: pytest.MonkeyPatch, answer: str) -> Running:
    found = Running()
    monkeypatch.setattr("remora.cli.lifecycle.Instance.find", lambda _home: found)
    monkeypatch.setattr("sys.stdin", io.StringIO(answer))
    lifecycle.stop_instance(ask=True)
    return found


def test_yes_stops_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shutdown(monkeypatch, "y\n").stopped


@pytest.mark.parametrize(
    ("answer", "told"),
    [("n\n", "Nothing was changed: the instance goes on."), ("", "Nobody answers, so nothing was")],
)
def test_no_and_nothing_change_nothing_and_say_so(
    monkeypatch: pytest.MonkeyPatch, answer: str, told: str
) -> None:
    with pytest.raises(CommandError, match=told) as caught:
        shutdown(monkeypatch, answer)
    assert caught.value.status == FAILED_STATUS


def test_an_interrupt_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_prompt: Any) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("click.termui.visible_prompt_func", interrupted)
    with pytest.raises(click.Abort):
        shutdown(monkeypatch, "")
