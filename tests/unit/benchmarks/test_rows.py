"""The page about the benchmarks describes every row, and no other."""

import re
from pathlib import Path

from benchmarks.rows import ROWS

PAGE = Path(__file__).parents[3] / "docs" / "benchmarks.md"


def test_every_row_is_described_and_nothing_else() -> None:
    section = PAGE.read_text().partition("## What is measured")[2].partition("## How to read")[0]
    first_cells = re.findall(r"^\| (`[^|]*) \|", section, re.MULTILINE)
    described = [name for cell in first_cells for name in re.findall(r"`(\w+)`", cell)]
    assert sorted(described) == sorted(row.key for row in ROWS)
