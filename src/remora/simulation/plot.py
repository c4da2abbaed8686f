"""A picture of a simulation as SVG, which browsers and documents show without further libraries.

Rules: pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

from remora.simulation.result import Result, Sample, rates

_WIDTH, _HEIGHT = 720, 110
_LEFT, _TOP, _GAP = 90, 40, 34
_RIGHT = 20
_COLOURS = ("#1f77b4", "#d62728")


def svg(results: Sequence[Result]) -> str:
    """Draw deployments over time, one below the other. Pure."""
    parts: list[str] = []
    top = 0.0
    for result in results:
        top = _deployment(result, top, parts)
    width = _LEFT + _WIDTH + _RIGHT
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{top:g}" '
        f'viewBox="0 0 {width} {top:g}" font-family="sans-serif" font-size="12">\n'
        f'<rect width="{width}" height="{top:g}" fill="white"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _deployment(result: Result, top: float, parts: list[str]) -> float:
    samples = result.samples
    parts.append(f'<text x="{_LEFT}" y="{top + 22:g}" font-size="15">{escape(result.name)}</text>')
    top += _TOP
    charts: list[tuple[str, list[tuple[str, list[float]]]]] = [
        ("requests/s", [("", rates(samples))]),
        (
            "replicas",
            [
                ("target", [float(each.target) for each in samples]),
                ("running", [float(each.running) for each in samples]),
            ],
        ),
        (
            "requests",
            [
                ("ongoing", [float(each.ongoing) for each in samples]),
                ("queued", [float(each.queued) for each in samples]),
            ],
        ),
        (
            "latency, s",
            [
                ("p50", _held([each.p50_s for each in samples])),
                ("p99", _held([each.p99_s for each in samples])),
            ],
        ),
    ]
    for name, lines in charts:
        top = _chart(name, lines, samples, top, parts)
    return top


def _held(values: Sequence[float | None]) -> list[float]:
    """Where nothing ended, nothing is known: the last value is drawn on. Pure."""
    held, last = [], 0.0
    for value in values:
        last = last if value is None else value
        held.append(last)
    return held


def _chart(
    name: str,
    lines: Sequence[tuple[str, list[float]]],
    samples: Sequence[Sample],
    top: float,
    parts: list[str],
) -> float:
    highest = max((max(values, default=0.0) for _, values in lines), default=0.0) or 1.0
    length_s = samples[-1].at_s if samples else 1.0
    bottom = top + _HEIGHT
    frame = f'x="{_LEFT}" y="{top:g}" width="{_WIDTH}" height="{_HEIGHT}"'
    parts += [
        f'<rect {frame} fill="none" stroke="#bbb"/>',
        f'<text x="{_LEFT - 8}" y="{top + 10:g}" text-anchor="end">{highest:.3g}</text>',
        f'<text x="{_LEFT - 8}" y="{bottom:g}" text-anchor="end">0</text>',
        f'<text x="{_LEFT - 8}" y="{top + _HEIGHT / 2:g}" text-anchor="end">{name}</text>',
        f'<text x="{_LEFT}" y="{bottom + 15:g}">0 s</text>',
        f'<text x="{_LEFT + _WIDTH}" y="{bottom + 15:g}" text-anchor="end">{length_s:g} s</text>',
    ]
    for index, (label, values) in enumerate(lines):
        points = " ".join(
            f"{_LEFT + _WIDTH * sample.at_s / length_s:.1f},"
            f"{bottom - _HEIGHT * value / highest:.1f}"
            for sample, value in zip(samples, values, strict=True)
        )
        colour = _COLOURS[index]
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.2"/>'
        )
        if label:
            parts.append(
                f'<text x="{_LEFT + 8 + 70 * index}" y="{top + 14:g}" fill="{colour}">{label}</text>'
            )
    return bottom + _GAP
