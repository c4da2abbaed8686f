"""Every public name can be imported, and the list of them is kept in order."""

from __future__ import annotations

import pytest

import remora


def test_every_public_name_can_be_imported() -> None:
    missing = [name for name in remora.__all__ if not hasattr(remora, name)]
    assert missing == []


def test_public_names_are_sorted_and_unique() -> None:
    assert list(remora.__all__) == sorted(set(remora.__all__))


def test_lists_no_private_name_but_the_version() -> None:
    private = {name for name in remora.__all__ if name.startswith("_")}
    assert private <= {"__version__"}


def test_dir_offers_every_public_name() -> None:
    assert set(remora.__all__) <= set(dir(remora))


def test_names_the_public_name_that_was_meant() -> None:
    with pytest.raises(AttributeError, match=r"'deploymnt'\. Did you mean 'deployment'"):
        remora.deploymnt  # noqa: B018
