"""Metrics of several processes put together, and written in the text format of Prometheus. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from remora.wire.metrics import Family

#: What a server of this text says that it is.
CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"


def counter(name: str, labels: tuple[str, ...], rows: Mapping[tuple[str, ...], float]) -> Family:
    """A family of counters."""
    return Family(name, "counter", labels, {key: [value] for key, value in rows.items()})


def gauge(name: str, labels: tuple[str, ...], rows: Mapping[tuple[str, ...], float]) -> Family:
    """A family of gauges. Those of several processes with the same labels are added up."""
    return Family(name, "gauge", labels, {key: [value] for key, value in rows.items()})


def merged(families: Iterable[Family]) -> list[Family]:
    """Put families of one name together, by name; rows with the same labels are added up.

    A family that disagrees with the first of its name about kind, labels or bounds (it comes from
    a process of another version) is left out.
    """
    found: dict[str, Family] = {}
    for family in families:
        first = found.get(family.name)
        if first is None:
            rows = {key: list(row) for key, row in family.rows.items()}
            found[family.name] = Family(
                family.name, family.kind, family.labels, rows, family.bounds
            )
        elif (first.kind, first.labels, first.bounds) == (
            family.kind,
            family.labels,
            family.bounds,
        ):
            for key, row in family.rows.items():
                known = first.rows.get(key)
                first.rows[key] = (
                    list(row) if known is None else [a + b for a, b in zip(known, row, strict=True)]
                )
    return [found[name] for name in sorted(found)]


def render(families: Iterable[Family]) -> str:
    """Write families in the text format of Prometheus; no two may have the same name."""
    lines: list[str] = []
    for family in families:
        name = f"{family.name}_total" if family.kind == "counter" else family.name
        lines.append(f"# TYPE {name} {family.kind}")
        for values, row in sorted(family.rows.items()):
            labels = ",".join(
                f'{label}="{escaped(value)}"'
                for label, value in zip(family.labels, values, strict=True)
            )
            if family.kind == "histogram":
                lines += _histogram(family, labels, row)
            else:
                lines.append(f"{name}{_braced(labels)} {_number(row[0])}")
    return "\n".join((*lines, ""))


def _histogram(family: Family, labels: str, row: list[float]) -> list[str]:
    lines = []
    comma = "," if labels else ""
    below = 0.0
    for bound, count in zip((*family.bounds, None), row[:-1], strict=True):
        below += count
        text = "+Inf" if bound is None else f"{bound:g}"
        lines.append(f'{family.name}_bucket{{{labels}{comma}le="{text}"}} {_number(below)}')
    lines.append(f"{family.name}_sum{_braced(labels)} {_number(row[-1])}")
    lines.append(f"{family.name}_count{_braced(labels)} {_number(below)}")
    return lines


def _braced(labels: str) -> str:
    return f"{{{labels}}}" if labels else ""


def _number(value: float) -> str:
    """All digits that a rate over a second needs, and none of the noise of adding up."""
    return str(int(value)) if value == int(value) else f"{value:.15g}"


def escaped(value: str) -> str:
    """A label's value: a client may send any method, an application may have any name."""
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
