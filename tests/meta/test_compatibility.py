"""What docs/compatibility.md claims to be shown by a test is shown by one that exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "compatibility.md"
WORDS = ("same", "different", "not yet")
_REFERENCE = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def _rows() -> list[tuple[str, str, str]]:
    rows = []
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == 3 and cells[0] != "subject" and not set(cells[0]) <= {"-"}:
            rows.append((cells[0], cells[1], cells[2]))
    return rows


def test_every_row_says_one_of_three_words() -> None:
    assert [row for row in _rows() if row[1] not in WORDS] == []


def test_every_reference_leads_to_a_test() -> None:
    missing = [
        f"{subject}: {path}::{name}"
        for subject, _, shown in _rows()
        for path, name in _REFERENCE.findall(shown)
        if not _has_test(path, name)
    ]
    assert missing == []


def test_whatever_is_the_same_is_shown_by_a_test() -> None:
    assert [
        s for s, word, shown in _rows() if word == "same" and not _REFERENCE.search(shown)
    ] == []


def test_whatever_differs_says_why() -> None:
    assert [s for s, word, shown in _rows() if word == "different" and len(shown) < 20] == []


@pytest.mark.parametrize("name", ["test_nobody_wrote_this"])
def test_a_missing_test_is_noticed(name: str) -> None:
    assert not _has_test("tests/meta/test_exports.py", name)


def _has_test(path: str, name: str) -> bool:
    file = ROOT / path
    return file.is_file() and re.search(rf"\bdef {name}\(", file.read_text()) is not None
