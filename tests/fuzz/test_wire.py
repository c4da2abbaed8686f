"""No bytes of a peer do more than end their own connection."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]

TARGET = Path(__file__).parent / "wire_target.py"


def test_a_coverage_guided_fuzzer_finds_no_bytes_that_break_the_codec(tmp_path: Path) -> None:
    pytest.importorskip("atheris", reason="has no wheel for this Python")
    done = subprocess.run(
        [sys.executable, str(TARGET), "-max_total_time=6", "-runs=400000", "-max_len=2048"],
        capture_output=True,
        text=True,
        timeout=50,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "DONE" in done.stderr
