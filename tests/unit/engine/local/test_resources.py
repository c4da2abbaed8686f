"""What a machine is said to have."""

from __future__ import annotations

import pytest

from remora.engine.local.resources import machine_resources


def test_a_machine_has_a_core_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    found = machine_resources()
    assert found["CPU"] >= 1
    assert found["memory"] > 0
    assert "GPU" not in found


@pytest.mark.parametrize(
    ("visible", "count"), [("0", 1), ("2,3", 2), ("GPU-a, GPU-b", 2), ("0,-1,1", 1)]
)
def test_gpus_are_those_that_are_visible(
    monkeypatch: pytest.MonkeyPatch, visible: str, count: int
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert machine_resources()["GPU"] == count
