"""Every option stands in the pages, with its default where there is a table."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from remora.config import HTTPOptions, gRPCOptions
from remora.options.deployment import KEYWORDS, DeploymentOptions, deployment_config

DOCS = Path(__file__).parents[2] / "docs"
#: Are refused so far; the page says so of all of them at once.
REFUSED = {
    "version",
}


def rows(page: str) -> dict[str, str]:
    """What the tables of a page say of each name in their first column: the second one."""
    found = {}
    for line in (DOCS / page).read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split("|")]
        if line.startswith("|") and len(cells) >= 3:
            found.update(dict.fromkeys(re.findall(r"`(\w+)`", cells[0]), cells[1].strip("`")))
    return found


def test_the_table_of_http_options_has_each_with_its_default() -> None:
    table = rows("api.md")
    defaults = HTTPOptions()
    for name in HTTPOptions.__struct_fields__:
        value = getattr(defaults, name)
        shown = f'"{value}"' if isinstance(value, str) else str(value)
        assert table.get(name) == shown, name


@pytest.mark.parametrize("name", gRPCOptions.__struct_fields__)
def test_the_table_of_grpc_options_has_each(name: str) -> None:
    assert name in rows("grpc.md")


@pytest.mark.parametrize("name", sorted(set(KEYWORDS) - REFUSED))
def test_each_option_of_a_deployment_is_named(name: str) -> None:
    page = (DOCS / "api.md").read_text(encoding="utf-8")
    options = page[page.index("Options of a deployment:") : page.index("An `Application` among")]
    assert f"`{name}`" in options


def test_the_page_leaves_out_only_what_is_refused() -> None:
    for name in REFUSED - {"version"}:
        values: list[object] = [1, {"min_replicas": 1}, [{"CPU": 1}], "PACK", {}, [object()]]
        assert not any(_is_taken(name, value) for value in values), name


def _is_taken(name: str, value: object) -> bool:
    given: DeploymentOptions = {name: value}  # type: ignore[misc]
    try:
        deployment_config(given)
    except (ValueError, TypeError):
        return False
    return True
