"""What `start` says of what it was given."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

import remora
from remora.build.starting import _START, begin_start


@pytest.mark.parametrize(("given", "meant"), [("adress", "address"), ("engin", "engine")])
def test_a_misspelled_option_is_told_with_the_one_that_was_meant(given: str, meant: str) -> None:
    options: dict[str, Any] = {given: "x"}
    with pytest.raises(TypeError, match=f"argument '{given}'. Did you mean '{meant}'"):
        begin_start(**options)


def test_every_option_may_be_meant() -> None:
    assert {*inspect.signature(remora.start).parameters} - {"unknown"} == {*_START}
