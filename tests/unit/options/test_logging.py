"""`LoggingConfig`: names, defaults and refusals."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import remora as serve
from remora.build.graph import build
from remora.config import DeploymentConfig
from remora.errors import ConfigError
from remora.options.logging import LoggingConfig, logging_config, with_absolute_folder
from remora.schema import EncodingType
from remora.schema import LoggingConfig as Public


class Code:
    def __call__(self) -> str:
        return ""


Model = serve.deployment(name="Model")(Code)


def test_names_and_defaults_are_those_of_ray_serve() -> None:
    config = LoggingConfig()
    assert (config.encoding, config.log_level, config.logs_dir) == ("TEXT", "INFO", None)
    assert config.enable_access_log is True
    assert config.additional_log_standard_attrs == []
    assert Public is LoggingConfig


def test_values_are_brought_into_one_form() -> None:
    config = LoggingConfig(
        encoding=EncodingType.JSON,
        log_level=10,
        additional_log_standard_attrs=["name", "lineno", "name"],
    )
    assert (config.encoding, config.log_level, config.level) == ("JSON", "DEBUG", logging.DEBUG)
    assert config.additional_log_standard_attrs == ["name", "lineno"]
    assert LoggingConfig(log_level="warning").log_level == "WARNING"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"encoding": "XML"}, "'TEXT' or 'JSON'"),
        ({"log_level": "DEBUGG"}, "Did you mean 'DEBUG'"),
        ({"log_level": 17}, "log_level"),
        ({"log_level": True}, "log_level"),
        ({"logs_dir": ""}, "logs_dir"),
        ({"enable_access_log": "yes"}, "enable_access_log"),
        ({"additional_log_standard_attrs": ["lineNo"]}, "Did you mean 'lineno'"),
        ({"additional_log_standard_attrs": "name"}, "list of names"),
        ({"max_file_bytes": 10}, "max_file_bytes"),
        ({"max_old_files": -1}, "max_old_files"),
        ({"loglevel": "INFO"}, "Did you mean 'log_level'"),
    ],
)
def test_what_cannot_be_right_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        logging_config(values)
    assert issubclass(ConfigError, ValueError)


def test_what_is_neither_dict_nor_config_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="must be a dict or LoggingConfig"):
        logging_config("JSON")  # type: ignore[arg-type]


def test_a_folder_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = with_absolute_folder(LoggingConfig(logs_dir="here"))
    assert config is not None
    assert config.logs_dir == str(tmp_path / "here")


def test_a_deployment_has_its_own_or_that_of_its_application() -> None:
    own = Model.options(logging_config={"log_level": "ERROR"})
    assert own.logging_config is not None
    assert own.logging_config["log_level"] == "ERROR"
    default = LoggingConfig(encoding="JSON")
    configs = [
        build(one.bind(), logging_config=default).deployments[0].config.logging_config
        for one in (own, Model)
    ]
    assert configs == [LoggingConfig(log_level="ERROR"), default]
    assert build(Model.bind()).deployments[0].config.logging_config is None
    assert Model.logging_config is None


def test_set_logging_config_holds_for_what_is_deployed_next() -> None:
    own = serve.deployment(name="Own")(Code)
    own.set_logging_config({"encoding": "JSON", "max_old_files": np.int64(3)})
    assert own.logging_config is not None
    assert type(own.logging_config["max_old_files"]) is int
    config: DeploymentConfig = build(own.bind()).deployments[0].config
    assert config.logging_config == LoggingConfig(encoding="JSON", max_old_files=3)
    with pytest.raises(ConfigError):
        own.set_logging_config({"encoding": "X"})
    assert own.logging_config is not None
    assert own.logging_config["encoding"] == "JSON"
