"""Changes of all kinds under requests of all kinds, for some seconds: none of them notices."""

from __future__ import annotations

import subprocess
import sys

import pytest
from tests import engines
from tests.e2e.instances import REPOSITORY

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.mark.timeout(90)
def test_no_request_notices_scalings_and_roll_outs() -> None:
    script = REPOSITORY / "scripts" / "rollout_soak.py"
    done = subprocess.run(
        [sys.executable, str(script), "--scalings", "4", "--roll-outs", "4", "--rate", "100"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=engines.patient(80),
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-3000:]}"
    for kind in ("scaling", "good", "slow", "failing", "cancelled"):
        assert f"'{kind}'" in done.stdout
