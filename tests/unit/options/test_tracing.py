"""Where traces go: what may be said of it, and what each process makes of that."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from remora.errors import ConfigError, MissingExtraError
from remora.observe import tracing
from remora.options.tracing import TracingConfig, tracing_config
from remora.schema import TracingConfig as FromSchema


def test_names_and_defaults_are_those_of_ray_serve() -> None:
    assert FromSchema is TracingConfig
    config = TracingConfig()
    assert (config.enabled, config.exporter_import_path, config.sampling_ratio) == (False, "", 0.01)
    assert tracing_config(None) is None
    assert tracing_config(config) is config
    given = {"enabled": True, "exporter_import_path": "a.b:c", "sampling_ratio": 1}
    assert tracing_config(given) == TracingConfig(**given)  # type: ignore[arg-type]
    assert TracingConfig(exporter_import_path="a.b.c").exporter_import_path == "a.b.c"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"sampling_ratio": 1.5}, "tracing_config.sampling_ratio"),
        ({"sampling_ratio": -0.1}, "tracing_config.sampling_ratio"),
        ({"sampling_ratio": float("nan")}, "tracing_config.sampling_ratio"),
        ({"sampling_ratio": "all"}, "tracing_config.sampling_ratio"),
        ({"enabled": "yes"}, "tracing_config.enabled"),
        ({"exporter_import_path": 3}, "tracing_config.exporter_import_path"),
        ({"exporter_import_path": "no function"}, "write module:function"),
        ({"exporter_import_path": "module"}, "write module:function"),
        ({"exporter": "a:b"}, "exporter_import_path"),
    ],
)
def test_what_cannot_be_right_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        tracing_config(given)


def test_what_is_no_config_is_refused() -> None:
    with pytest.raises(TypeError, match="must be a dict or TracingConfig"):
        tracing_config([])  # type: ignore[arg-type]


@pytest.mark.parametrize("given", [None, {}, {"sampling_ratio": 1.0}])
def test_what_is_not_switched_on_traces_nothing(given: object, tmp_path: Path) -> None:
    tracing.start(given, "me", tmp_path / "spans")()
    assert tracing.active() is None


def test_where_nothing_is_traced_nothing_of_it_is_imported() -> None:
    program = (
        "import sys, remora.proxy.main, remora.replica.main, remora.control.main\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_without_the_library_it_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_name: str) -> None:
        raise ModuleNotFoundError("No module named 'opentelemetry'")

    for found in (missing, lambda _name: None):
        monkeypatch.setattr("importlib.util.find_spec", found)
        with pytest.raises(MissingExtraError, match=r"pip install 'remora\[tracing\]'"):
            tracing.require_library()


@pytest.mark.parametrize("path", ["no_such_module_here:f", "os:getcwd", "os.path:no_such_name"])
def test_an_exporter_that_cannot_be_used_is_told_and_stops_nothing(
    path: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        given = {"enabled": True, "exporter_import_path": path}
        tracing.start(given, "proxy-1", tmp_path / "spans")()
    assert tracing.active() is None
    assert "proxy-1 traces nothing" in caplog.text
