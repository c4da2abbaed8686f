"""From the user's `add_…Servicer_to_server` functions to plain data that proxies can be given.

The functions are called here, in the program that starts the instance, with a recorder in place of
a server: it learns which services there are, what their methods take and give, and the files that
describe them. Proxies never import a module of the user's.

Rules: imports gRPC's libraries only once gRPC is asked for.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from remora.config import HTTPOptions, gRPCOptions, nearest
from remora.errors import ConfigError, MissingExtraError
from remora.transport.tls import server_context
from remora.wire.grpc import GrpcMethod, GrpcService, GrpcSetup

_FIELD = "grpc_options['grpc_servicer_functions']"
_LIBRARIES = ("grpc", "grpc_health", "grpc_reflection", "google.protobuf")


def grpc_setup(options: gRPCOptions, http_host: str | None) -> GrpcSetup | None:
    """Turn what the user wrote into what proxies are given; None: no gRPC is asked for.

    gRPC is asked for by any option that differs from its default.

    Args:
        options: the user's.
        http_host: where the HTTP front door listens, which is the default here too.

    Raises:
        MissingExtraError: the libraries are not installed.
        ModuleNotFoundError: a function's module cannot be found.
        ValueError: a function is none, or adds no service.
    """
    if options == gRPCOptions():
        return None
    _require_libraries()
    services, described = record(load(each) for each in options.grpc_servicer_functions)
    key, certificate, authorities = (
        str(Path(path).absolute()) if path else ""
        for path in (options.ssl_keyfile, options.ssl_certfile, options.ssl_ca_certs)
    )
    if certificate:
        files = HTTPOptions(
            ssl_keyfile=key, ssl_certfile=certificate, ssl_ca_certs=authorities or None
        )
        # Now, and not in every proxy.
        server_context(files, "grpc_options")
    return GrpcSetup(
        host=options.host or http_host or "127.0.0.1",
        port=options.port,
        request_timeout_s=options.request_timeout_s,
        enable_reflection=options.enable_reflection,
        max_message_bytes=options.max_message_bytes,
        ssl_keyfile=key,
        ssl_certfile=certificate,
        ssl_ca_certs=authorities,
        services=tuple(services),
        files=tuple(described),
    )


def _require_libraries() -> None:
    for name in _LIBRARIES:
        try:
            found = importlib.util.find_spec(name) is not None
        except ModuleNotFoundError:
            found = False
        if not found:
            raise MissingExtraError(f"gRPC needs the module {name}", "grpc")


def load(function: str | Callable[..., Any]) -> Callable[..., Any]:
    """Find a function by its import path; a function is itself.

    Raises:
        ModuleNotFoundError: no such module.
        ValueError: no such function in it, or it is none.
    """
    if callable(function):
        return function
    module_name, colon, name = function.partition(":")
    if not colon:
        module_name, _, name = function.rpartition(".")
    if not module_name or not name:
        raise ConfigError(
            _FIELD, function, "the import path of a function, such as my_pb2_grpc.add_…_to_server"
        )
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{_FIELD}: {function!r} cannot be imported: {error}. Is its folder on sys.path "
            "(PYTHONPATH, or --app-dir of `remora run`)?",
            name=error.name,
        ) from None
    found = getattr(module, name, None)
    if not callable(found):
        there = [each for each in dir(module) if each.startswith("add_")]
        hint = nearest(name, there) or f" It has {', '.join(there) or 'none'}."
        raise ConfigError(_FIELD, function, f"{module_name} has no such function.{hint}")
    return found  # type: ignore[no-any-return]


class _AnyServicer:
    """Has every method that a generated function asks of a servicer."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


class _Recorder:
    """Takes the place of a server, and notes the handlers that it is given."""

    def __init__(self) -> None:
        self.handlers: dict[str, dict[str, Any]] = {}

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Sequence[Any]) -> None:
        """Note handlers by their path, as code of older generators gives them."""
        for handler in generic_rpc_handlers:
            for path, method in getattr(handler, "_method_handlers", {}).items():
                service, _, name = path.lstrip("/").partition("/")
                self.handlers.setdefault(service, {}).setdefault(name, method)

    def add_registered_method_handlers(self, service_name: str, method_handlers: Any) -> None:
        """Note the handlers of a service."""
        self.handlers.setdefault(service_name, {}).update(method_handlers)


def record(functions: Iterable[Callable[..., Any]]) -> tuple[list[GrpcService], list[bytes]]:
    """Call the functions, and describe the services that they add and the files behind these.

    Raises:
        ValueError: a function adds no service, or one that no protobuf file describes.
    """
    services: dict[str, GrpcService] = {}
    files: dict[str, bytes] = {}
    for function in functions:
        recorder = _Recorder()
        try:
            function(_AnyServicer(), recorder)
        except (TypeError, AttributeError) as error:
            raise ConfigError(
                _FIELD, function, f"no add_…Servicer_to_server function: calling it gave {error}"
            ) from error
        if not recorder.handlers:
            raise ConfigError(_FIELD, function, "it adds no service to the server it is given")
        for name, handlers in recorder.handlers.items():
            services[name] = _describe(function, name, handlers, files)
    return list(services.values()), list(files.values())


def _describe(
    function: object, name: str, handlers: dict[str, Any], files: dict[str, bytes]
) -> GrpcService:
    from google.protobuf import descriptor_pool, message_factory

    try:
        described = descriptor_pool.Default().FindServiceByName(name)
    except KeyError:
        raise ConfigError(
            _FIELD, function, f"no imported protobuf module describes the service {name}"
        ) from None
    _collect(described.file, files)
    methods = []
    for method, handler in handlers.items():
        types = described.methods_by_name[method]
        methods.append(
            GrpcMethod(
                method,
                bool(handler.request_streaming),
                bool(handler.response_streaming),
                types.input_type.full_name,
                types.output_type.full_name,
                message_factory.GetMessageClass(types.input_type).__module__,
            )
        )
    return GrpcService(name, tuple(methods))


def _collect(file: Any, files: dict[str, bytes]) -> None:
    if file.name not in files:
        for needed in file.dependencies:
            _collect(needed, files)
        files[file.name] = file.serialized_pb
