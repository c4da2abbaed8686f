"""HTTP options and proxy location as users give them."""

from __future__ import annotations

from typing import Any

import pytest

from remora.config import (
    UNSET,
    HTTPOptions,
    ProxyLocation,
    gRPCOptions,
    http_options,
    proxy_location,
)
from remora.errors import ConfigError


def test_unset_is_false_and_prints_its_name() -> None:
    assert not UNSET
    assert repr(UNSET) == "UNSET"


def test_a_dict_becomes_the_struct() -> None:
    assert http_options({"port": 9, "host": "0.0.0.0"}) == HTTPOptions(port=9, host="0.0.0.0")
    assert http_options(None) == HTTPOptions()


def test_neutral_values_of_old_options_are_taken() -> None:
    assert http_options({"middlewares": [], "num_cpus": 0}) == HTTPOptions()
    old: dict[str, Any] = {"middlewares": [], "num_cpus": 0, "port": 9}
    assert HTTPOptions(**old) == HTTPOptions(port=9)


@pytest.mark.parametrize(
    "given",
    [
        {"port": 70000},
        {"port": "8000"},
        {"websocket_max_message_bytes": 0},
        {"websocket_ping_interval_s": 0},
        {"websocket_ping_timeout_s": -1},
        {"host": ""},
        {"prot": 1},
        {"request_timeout_s": 0},
        {"middlewares": [object()]},
        {"num_cpus": 1},
        {"num_proxies": 0},
    ],
)
def test_refuses_what_cannot_be_right(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(given))):
        http_options(given)


def test_names_the_nearest_option() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'port'"):
        http_options({"prot": 1})


def test_the_url_in_messages_must_be_one() -> None:
    with pytest.raises(ConfigError, match="root_url"):
        http_options({"root_url": "example.org"})


def test_location_in_http_options_is_deprecated() -> None:
    with pytest.warns(DeprecationWarning, match="proxy_location"):
        assert http_options({"location": "HeadOnly"}) == HTTPOptions()
    old: dict[str, Any] = {"location": "HeadOnly"}
    with pytest.warns(DeprecationWarning, match="proxy_location"):
        assert HTTPOptions(**old) == HTTPOptions()


def test_proxy_location_comes_as_text_or_member() -> None:
    assert proxy_location("HeadOnly") is ProxyLocation.HeadOnly
    assert proxy_location(ProxyLocation.Disabled) is ProxyLocation.Disabled
    assert proxy_location("NoServer") is ProxyLocation.Disabled
    assert proxy_location(None) is ProxyLocation.EveryNode


def test_proxy_location_refuses_the_rest() -> None:
    with pytest.raises(TypeError):
        proxy_location(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="EveryNode"):
        proxy_location("EveryNod")


@pytest.mark.parametrize("kind", [HTTPOptions, gRPCOptions])
def test_a_misspelt_option_of_a_front_door_names_the_nearest(kind: Any) -> None:
    with pytest.raises(TypeError, match=r"keyword argument 'prot'. Did you mean 'port'\?"):
        kind(prot=1)
    assert kind(port=1).port == 1
