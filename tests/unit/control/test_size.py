"""With much of everything the controller still answers at once; `scripts/size.py` tells by how much.

What is measured is processor time, and the limits leave room for machines that are slower.
"""

from __future__ import annotations

import pytest
from scripts.size import measure

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]


def test_a_thousand_deployments_hold_nobody_up() -> None:
    found = measure(1000, 4)
    assert found.idle_tick_s < 0.005
    assert found.worst_tick_s < 0.1
    assert found.spread_s < 0.2
    assert found.state_bytes < 50e6


def test_a_tick_costs_what_it_changes_and_not_what_there_is() -> None:
    small, large = measure(40, 2), measure(400, 2)
    # Ten times as many deployments; what is left to grow with them is copying four dictionaries.
    assert large.idle_tick_s < 8 * small.idle_tick_s
