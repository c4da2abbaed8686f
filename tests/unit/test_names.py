"""Names that are looked for at the top of the package, and found elsewhere."""

from __future__ import annotations

from importlib import import_module

import pytest

import remora


@pytest.mark.parametrize("name", sorted(remora._ELSEWHERE))
def test_a_name_that_is_elsewhere_says_where(name: str) -> None:
    with pytest.raises(AttributeError) as caught:
        getattr(remora, name)
    module = str(caught.value).partition("from ")[2].partition(" ")[0]
    assert hasattr(import_module(module), name)
