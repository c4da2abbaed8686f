"""From servicer functions to what proxies are given."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from tests.kitchen import SERVICE, pb2_grpc

from remora.build.grpc_services import grpc_setup, load, record
from remora.config import grpc_options, gRPCOptions
from remora.errors import ConfigError, MissingExtraError
from remora.wire.grpc import GrpcMethod, digest


def _kitchen() -> Any:
    return pb2_grpc().add_KitchenServicer_to_server


def _setup(**options: Any) -> Any:
    return grpc_setup(gRPCOptions(grpc_servicer_functions=[_kitchen()], **options), "127.0.0.1")


def test_services_are_plain_data_with_every_kind_of_method() -> None:
    (service,), files = record([_kitchen()])
    order, plate = "kitchen.v1.Order", "kitchen.v1.Plate"
    assert service.name == SERVICE
    assert service.methods == (
        GrpcMethod("Cook", False, False, order, plate, "kitchen_pb2"),
        GrpcMethod("Missing", False, False, order, plate, "kitchen_pb2"),
        GrpcMethod("Serve", False, True, order, plate, "kitchen_pb2"),
        GrpcMethod("Sum", True, False, order, "kitchen.v1.Bill", "kitchen_pb2"),
        GrpcMethod("Chat", True, True, order, plate, "kitchen_pb2"),
    )
    assert len(files) == 1
    assert b"kitchen.proto" in files[0]


def test_a_file_comes_after_those_that_it_imports() -> None:
    from grpc_health.v1 import health_pb2_grpc
    from grpc_reflection.v1alpha import reflection_pb2_grpc

    services, files = record(
        [
            health_pb2_grpc.add_HealthServicer_to_server,
            reflection_pb2_grpc.add_ServerReflectionServicer_to_server,
        ]
    )
    assert len(services) == len(files) == 2


def test_code_of_older_generators_is_understood() -> None:
    class Old:
        def __init__(self, server: Any) -> None:
            self.server = server

        def add_generic_rpc_handlers(self, handlers: Any) -> None:
            self.server.add_generic_rpc_handlers(handlers)

        def add_registered_method_handlers(self, *_: Any) -> None:
            """Not there yet."""

    def add(servicer: Any, server: Any) -> None:
        _kitchen()(servicer, Old(server))

    (service,), _ = record([add])
    assert [method.name for method in service.methods] == [
        "Cook",
        "Missing",
        "Serve",
        "Sum",
        "Chat",
    ]


def test_a_function_is_found_by_its_import_path() -> None:
    assert load("kitchen_pb2_grpc.add_KitchenServicer_to_server") is _kitchen()
    assert load("kitchen_pb2_grpc:add_KitchenServicer_to_server") is _kitchen()
    assert load(_kitchen()) is _kitchen()


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("no_such.function", ModuleNotFoundError, "'no_such.function' cannot be imported"),
        ("kitchen_pb2_grpc.add_Kitchen", ValueError, "It has add_Garden"),
        ("kitchen_pb2_grpc.add_KitchenServicer", ValueError, "Did you mean 'add_KitchenServicer_"),
        ("alone", ValueError, "the import path of a function"),
    ],
)
def test_a_wrong_path_says_what_is_wrong(path: str, error: type[Exception], message: str) -> None:
    _kitchen()
    with pytest.raises(error, match=message):
        load(path)


def test_a_function_that_adds_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="adds no service"):
        record([lambda servicer, server: None])
    with pytest.raises(ValueError, match=r"no add_.*Servicer_to_server function"):
        record([lambda: None])


def test_defaults_ask_for_no_grpc_and_anything_else_does() -> None:
    assert grpc_setup(gRPCOptions(), None) is None
    assert grpc_setup(gRPCOptions(port=9001), None) is not None
    assert _setup() is not None


def test_the_address_is_that_of_http_unless_said_otherwise() -> None:
    assert grpc_setup(gRPCOptions(port=1), "0.0.0.0").host == "0.0.0.0"  # type: ignore[union-attr]
    assert grpc_setup(gRPCOptions(port=1), None).host == "127.0.0.1"  # type: ignore[union-attr]
    assert _setup(host="::1").host == "::1"


def test_the_digest_tells_setups_apart_but_for_the_port() -> None:
    assert digest(None) == ""
    assert digest(_setup(port=1)) == digest(_setup(port=2))
    assert digest(_setup()) != digest(_setup(request_timeout_s=1))


def test_without_the_libraries_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'remora\[grpc\]'"):
        grpc_setup(gRPCOptions(port=1), None)
    with pytest.raises(ModuleNotFoundError):
        grpc_setup(gRPCOptions(port=1), None)


def test_a_certificate_is_looked_at_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"grpc_options\['ssl_certfile'\].*cannot be read: No such file"
    ):
        _setup(ssl_keyfile="no.key", ssl_certfile="no.pem")
    wrong = tmp_path / "wrong.pem"
    wrong.write_text("nonsense")
    with pytest.raises(ConfigError, match=r"grpc_options\['ssl_keyfile'\]"):
        _setup(ssl_keyfile=str(wrong), ssl_certfile=str(wrong))


@pytest.mark.parametrize(
    "wrong",
    [
        {"port": -1},
        {"port": "9000"},
        {"request_timeout_s": 0},
        {"enable_reflection": "yes"},
        {"grpc_servicer_functions": "a.b"},
        {"grpc_servicer_functions": [1]},
        {"host": ""},
        {"max_message_bytes": 0},
        {"ssl_keyfile": "a"},
        {"ssl_ca_certs": "a"},
    ],
)
def test_wrong_options_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="grpc_options"):
        grpc_options(wrong)


def test_options_are_a_dict_or_the_struct() -> None:
    assert grpc_options(None) == gRPCOptions()
    assert grpc_options({"port": 1}) == gRPCOptions(port=1)
    assert grpc_options(gRPCOptions(port=1)).port == 1
    with pytest.raises(TypeError, match="a dict or gRPCOptions"):
        grpc_options(1)  # type: ignore[arg-type]


def test_the_defaults_are_ray_serves() -> None:
    options = gRPCOptions()
    assert (options.port, options.grpc_servicer_functions) == (9000, [])
    assert (options.request_timeout_s, options.enable_reflection) == (None, True)
    assert options.max_message_bytes == 2**31 - 1
