"""Everything at once for a while: every request ends as it should, and nothing grows."""

from __future__ import annotations

import subprocess
import sys

import pytest
from scripts.soak import GROWTH_BYTES, Record, Sample, judge
from tests.e2e.instances import REPOSITORY

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SECONDS = 15


@pytest.mark.timeout(SECONDS + 60)
def test_a_mixed_load_leaves_nothing_behind() -> None:
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "scripts" / "soak.py"), "--seconds", str(SECONDS)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=SECONDS + 50,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-3000:]}"
    print(done.stdout)


def record(**growth: float) -> Record:
    """A run of 100 samples of one process, that grows by so much after warm-up."""

    def value(name: str, base: int, number: int) -> int:
        return base + int(growth.get(name, 0) * max(0, number - 20) / 80)

    samples = [
        Sample(n, value("bytes", 50_000_000, n), value("fds", 20, n), value("threads", 3, n))
        for n in range(100)
    ]
    made = Record({"replica": samples}, [value("files", 5, n) for n in range(100)])
    made.done["get"] = 1000
    return made


def test_a_flat_run_passes() -> None:
    assert judge(record()) == []


@pytest.mark.parametrize(
    ("growth", "says"),
    [
        ({"bytes": 1.1 * GROWTH_BYTES}, "bytes"),
        ({"fds": 40}, "descriptors"),
        ({"threads": 10}, "threads"),
        ({"files": 10}, "temporary files"),
    ],
)
def test_growth_fails_a_run(growth: dict[str, float], says: str) -> None:
    (found,) = judge(record(**growth))
    assert says in found


def test_a_wrong_answer_and_a_restart_fail_a_run() -> None:
    made = record()
    made.wrong["get: 500"] += 1
    made.processes["other"] = made.processes["replica"][:50]
    assert len(judge(made)) == 2
