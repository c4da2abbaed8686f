"""A gRPC service for tests: its generated modules are made when they are first asked for."""

from __future__ import annotations

import atexit
import importlib
import shutil
import sys
import tempfile
from functools import lru_cache
from pathlib import Path
from types import ModuleType

SERVICE = "kitchen.v1.Kitchen"

_PROTO = """
syntax = "proto3";
package kitchen.v1;

message Order { string dish = 1; int32 count = 2; bytes note = 3; }
message Plate { string dish = 1; int32 count = 2; bytes note = 3; }
message Bill { int32 total = 1; }

service Kitchen {
  rpc Cook(Order) returns (Plate);
  rpc Missing(Order) returns (Plate);
  rpc Serve(Order) returns (stream Plate);
  rpc Sum(stream Order) returns (Bill);
  rpc Chat(stream Order) returns (stream Plate);
}

service Garden {
  rpc Cook(Order) returns (Plate);
}
"""


@lru_cache
def folder() -> Path:
    """The folder with the generated modules, made once for this process."""
    from grpc_tools import protoc

    made = Path(tempfile.mkdtemp(prefix="remora-p-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    (made / "kitchen.proto").write_text(_PROTO)
    status = protoc.main(
        [
            "protoc",
            f"-I{made}",
            f"--python_out={made}",
            f"--grpc_python_out={made}",
            str(made / "kitchen.proto"),
        ]
    )
    assert status == 0
    return made


def _module(name: str) -> ModuleType:
    if str(folder()) not in sys.path:
        sys.path.insert(0, str(folder()))
    return importlib.import_module(name)


def pb2() -> ModuleType:
    """The messages."""
    return _module("kitchen_pb2")


def pb2_grpc() -> ModuleType:
    """Stubs, and functions that add a servicer to a server."""
    return _module("kitchen_pb2_grpc")
