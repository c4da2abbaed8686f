"""Handles by name."""

from __future__ import annotations

import pytest

import remora
from remora.calls import lookup
from remora.handle import DeploymentHandle
from remora.schema import ServeStatus


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


def test_a_kept_handle_is_looked_for_again_once_its_deployment_is_not_known_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known = True
    monkeypatch.setattr("remora.router.process.knows_deployment", lambda _: known)
    monkeypatch.setattr(lookup, "require_instance", lambda: None)
    monkeypatch.setattr(lookup, "wait_for", lambda *_: ServeStatus())
    lookup._handles.clear()
    kept = remora.get_deployment_handle("D", "a", _check_exists=False)
    assert remora.get_deployment_handle("D", "a") is kept
    known = False
    with pytest.raises(KeyError, match="a/D does not exist"):
        remora.get_deployment_handle("D", "a")
    lookup._handles.clear()


def test_deleting_an_application_drops_its_kept_handles_alone() -> None:
    gone = remora.get_deployment_handle("D", "a", _check_exists=False)
    other = remora.get_deployment_handle("D", "b", _check_exists=False)
    lookup.forget_handles_of("a")
    assert remora.get_deployment_handle("D", "a", _check_exists=False) is not gone
    assert remora.get_deployment_handle("D", "b", _check_exists=False) is other
    lookup._handles.clear()
