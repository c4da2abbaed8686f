"""Handles by name."""

from __future__ import annotations

import pytest

import remora
from remora import lookup
from remora.handle import DeploymentHandle


def test_without_a_check_a_handle_needs_nothing_and_is_kept() -> None:
    first = remora.get_deployment_handle("D", "a", _check_exists=False)
    assert isinstance(first, DeploymentHandle)
    assert remora.get_deployment_handle("D", "a", _check_exists=False) is first


def test_keeps_at_most_so_many_handles(caplog: pytest.LogCaptureFixture) -> None:
    for number in range(lookup.MAX_CACHED_HANDLES + 5):
        remora.get_deployment_handle(f"D{number}", "a", _check_exists=False)
    assert len(lookup._handles) == lookup.MAX_CACHED_HANDLES
    assert "dropped" in caplog.text
    lookup._handles.clear()
