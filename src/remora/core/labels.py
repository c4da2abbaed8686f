"""Label selectors: what the labels of a node must be.

Rules: pure. A condition is a value, `!value`, `in(a,b)` or `!in(a,b)`; a node without the label
fulfils only the two with an exclamation mark.
"""

from __future__ import annotations

from collections.abc import Mapping

#: Says in which zone a node is; Ray and KubeRay set it where the cloud says so.
ZONE = "ray.io/availability-zone"


def zone_of(labels: Mapping[str, str]) -> str:
    """Return the zone of a node; empty: unknown. Pure."""
    return labels.get(ZONE, "")


def matches(labels: Mapping[str, str], selector: Mapping[str, str]) -> bool:
    """Say whether labels fulfil every condition of a selector. Pure."""
    return all(_holds(labels.get(name), condition) for name, condition in selector.items())


def _holds(value: str | None, condition: str) -> bool:
    negated = condition.startswith("!")
    wanted = condition.removeprefix("!")
    names = [wanted]
    if wanted.startswith("in(") and wanted.endswith(")"):
        names = [name.strip() for name in wanted[3:-1].split(",")]
    return (value in names) is not negated


def told(selector: Mapping[str, str]) -> str:
    """Write a selector for people. Pure."""
    return ", ".join(f"{name}={condition}" for name, condition in sorted(selector.items()))
