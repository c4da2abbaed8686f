"""What is said of the start on Ray."""

from __future__ import annotations

from benchmarks.ray_start import summary


def test_what_remora_adds_is_the_difference_of_the_means() -> None:
    assert "adds 1.25 s; goal < 1.5 s: met" in summary([3.0, 4.0], [4.5, 5.0])
    assert "adds 2.00 s; goal < 1.5 s: missed" in summary([2.0], [4.0])
