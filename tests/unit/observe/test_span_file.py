"""Spans are lines of one file, which does not grow without end."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor

from remora.observe.span_file import SpanFile


def test_each_span_is_a_line_and_a_long_file_is_put_aside(tmp_path: Path) -> None:
    path = tmp_path / "spans.jsonl"
    providers = []
    for _ in range(2):
        # As two processes that share the file.
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(SpanFile(path, max_bytes=3_000)))
        providers.append(provider)
    for number in range(8):
        providers[number % 2].get_tracer("test").start_span(f"s{number}\n").end()
    old = path.with_name("spans.jsonl.1")
    lines = [*old.read_text().splitlines(), *path.read_text().splitlines()]
    assert json.loads(lines[-1])["name"] == "s7\n"
    assert old.stat().st_size < 5_000
    assert path.stat().st_mode & 0o777 == 0o600
    for provider in providers:
        provider.shutdown()


def test_a_file_that_cannot_be_written_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(SpanFile(tmp_path / "none" / "spans")))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            provider.get_tracer("test").start_span("s").end()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
