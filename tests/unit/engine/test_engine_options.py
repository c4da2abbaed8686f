"""Which engine is meant by what a user says."""

from __future__ import annotations

from typing import Any

import pytest

from remora.config import EngineOptions, engine_options
from remora.errors import ConfigError


@pytest.mark.parametrize(
    ("said", "variable", "meant"),
    [
        ({}, None, EngineOptions()),
        ({}, "head:6379", EngineOptions(engine="ray", address="head:6379")),
        ({"engine": "local"}, "head:6379", EngineOptions()),
        ({"engine": "ray"}, None, EngineOptions(engine="ray")),
        ({"engine": "ray"}, "head:6379", EngineOptions(engine="ray", address="head:6379")),
        ({"address": "auto"}, "head:6379", EngineOptions(engine="ray", address="auto")),
        (
            {"engine": "ray", "location": "HeadOnly"},
            None,
            EngineOptions(engine="ray", proxy_location="HeadOnly"),
        ),
    ],
)
def test_the_engine_follows_from_what_is_said(
    said: dict[str, Any],
    variable: str | None,
    meant: EngineOptions,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("REMORA_ADDRESS", raising=False)
    if variable is not None:
        monkeypatch.setenv("REMORA_ADDRESS", variable)
    assert engine_options(**said) == meant


@pytest.mark.parametrize(
    ("said", "field"),
    [
        ({"engine": "kubernetes"}, "engine"),
        ({"engine": "local", "address": "auto"}, "address"),
        ({"engine": "ray", "location": "Nowhere"}, "proxy_location"),
        ({"address": "atuo"}, "'auto' for the cluster of this machine.*Did you mean 'auto'"),
        ({"address": "10.0.0.5"}, "write host:port of the cluster's head"),
        ({"address": "10.0.0.5:70000"}, "write host:port"),
        ({"address": ":6379"}, "write host:port"),
        ({"address": "ray://head:10001"}, "over Ray Client"),
    ],
)
def test_what_cannot_be_is_refused(said: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        engine_options(**said)


def test_a_wrong_address_in_the_environment_is_told_as_such(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("REMORA_ADDRESS", "lokal")
    with pytest.raises(ConfigError, match=r"REMORA_ADDRESS='lokal' is not allowed.*mean 'local'"):
        engine_options()
    # Who has chosen is not asked for more.
    assert engine_options("local") == EngineOptions()
