"""Metrics of several processes put together, and written in the text format of Prometheus. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from operator import attrgetter

import msgspec

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

    Of the user's code, families of one name may have different labels and bounds, if one replica
    says both nowhere: they come one after the other. Any other family that disagrees with the first
    of its name (it comes from a process of another version) is left out, and so is one of the
    user's code that has the name of one of ours.
    """
    found: dict[tuple[str, tuple[str, ...], tuple[float, ...]], Family] = {}
    for family in _fitting(families):
        where = (family.name, family.labels, family.bounds)
        first = found.get(where)
        if first is None:
            rows = {key: list(row) for key, row in family.rows.items()}
            found[where] = msgspec.structs.replace(family, rows=rows)
            continue
        for key, row in family.rows.items():
            known = first.rows.get(key)
            first.rows[key] = (
                list(row) if known is None else [a + b for a, b in zip(known, row, strict=True)]
            )
    return [found[where] for where in sorted(found)]


def disagreeing(families: Iterable[Family]) -> set[str]:
    """Names under which the user's code counts something that `merged` leaves out. Pure."""
    known = list(families)
    kept = {id(family) for family in _fitting(known)}
    return {each.name for each in known if each.by_user and id(each) not in kept}


def _fitting(families: Iterable[Family]) -> Iterator[Family]:
    """Those that agree with the first of their name; ours come before those of users."""
    firsts: dict[str, Family] = {}
    for family in sorted(families, key=attrgetter("by_user")):
        first = firsts.setdefault(family.name, family)
        if (family.kind, family.by_user) == (first.kind, first.by_user) and (
            family.by_user or (family.labels, family.bounds) == (first.labels, first.bounds)
        ):
            yield family


def render(families: Iterable[Family]) -> str:
    """Write families in the text format of Prometheus; those of one name follow each other."""
    lines: list[str] = []
    before = ""
    for family in families:
        name = f"{family.name}_total" if family.kind == "counter" else family.name
        if name != before:
            if family.text:
                lines.append(f"# HELP {name} {_one_line(family.text)}")
            lines.append(f"# TYPE {name} {family.kind}")
            before = name
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
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) else f"{value:.15g}"


def _one_line(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def escaped(value: str) -> str:
    """A label's value: a client may send any method, an application may have any name."""
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
