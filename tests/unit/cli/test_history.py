"""Two releases, or one and a file, are compared in the direction of time."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from remora.cli import history
from remora.wire.releases import Release


def release(number: int, *names: str, kind: str = "config", in_effect: bool = False) -> Release:
    said = {"applications": [{"name": name, "import_path": "a:b"} for name in names]}
    return Release(
        number=number,
        unix_s=0.0,
        kind=kind,
        source="",
        applications=names,
        said=json.dumps(said).encode(),
        in_effect=in_effect,
    )


class Kept:
    def __init__(self, *releases: Release) -> None:
        self._releases = list(releases)

    async def releases(self) -> list[Release]:
        return self._releases


def test_a_file_is_what_comes_after_what_is_declared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = Kept(release(1, "old"), release(2, "present", in_effect=True))
    monkeypatch.setattr(history, "find", lambda: kept)
    file = tmp_path / "new.yaml"
    file.write_text("applications: [{name: new, import_path: 'a:b'}]\n")
    history.show_diff(str(file), None)
    shown = capsys.readouterr().out.splitlines()
    assert shown[:2] == ["--- release 2", f"+++ {file}"]
    assert "-- name: present" in shown
    assert "+- name: new" in shown
    history.show_diff(None, None)
    assert capsys.readouterr().out.splitlines()[:2] == ["--- release 1", "+++ release 2"]


def test_a_rollback_says_where_it_goes_and_what_it_passes_over() -> None:
    told = history.where_to(
        [
            msgspec.structs.replace(release(1, "a"), source="serve.yaml", outcome="deployed"),
            msgspec.structs.replace(release(2, "a"), outcome="failed"),
            msgspec.structs.replace(release(3, "a"), outcome="deployed"),
        ],
        msgspec.structs.replace(release(4, "a"), rollback_to=1, source="rollback to 1"),
    )
    assert told[0] == "Release 2 is passed over: failed."
    assert told[1].startswith("Release 4 is accepted: back to what release 1 said (serve.yaml, ")
