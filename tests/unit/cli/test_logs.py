"""`remora logs` shows what was asked for, or says that there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from remora.cli.logs import show_logs

LINE = "INFO 2026-01-02 03:04:05,000 shop_Model 1 {} -- here\n"


@pytest.mark.parametrize(("wanted", "is_there"), [("r-1", True), ("nope", False)])
def test_a_request_that_no_line_is_of_is_told(
    wanted: str,
    is_there: bool,
    remora_home: Path,
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    folder = remora_home / "logs"
    folder.mkdir(parents=True)
    (folder / "replica_shop+Model+1.log").write_text(LINE.format("r-1"))
    show_logs("", request_id=wanted, since=None, lines=None, access=False, follow=False)
    out, err = capfdbinary.readouterr()
    assert (b"here" in out) == is_there
    assert (b"No line of the logs in" in err and b"request id 'nope'" in err) == (not is_there)
