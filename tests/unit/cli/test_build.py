"""What `remora build` writes can be deployed as it stands."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from remora.cli.build import write_config
from remora.cli.errors import CommandError
from remora.config import gRPCOptions
from remora.config_file.declaration import parse

MODULE = """
import remora as serve
from remora.experimental.round_robin_router import RoundRobinRouter

print("loading")


@serve.deployment(
    num_replicas=2,
    user_config={"a": 1},
    ray_actor_options={"num_cpus": 0.5},
    backpressure_config=serve.config.BackpressureConfig(status_code=429),
    request_router_config={"request_router_class": RoundRobinRouter},
)
class Model:
    def __call__(self):
        return 1


@serve.deployment
class Front:
    def __init__(self, model):
        self.model = model


app = Front.bind(Model.bind())
other = Model.bind()


def build(args):
    return app


class Local:
    pass
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "build_me.py").write_text(MODULE)
    before = list(sys.path)
    yield tmp_path
    sys.path[:] = before
    sys.modules.pop("build_me", None)


def test_one_path_is_served_at_the_root_with_the_options_of_its_code(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_config(["build_me:app"], folder, None, gRPCOptions())
    text = capsys.readouterr().out
    assert text.startswith("# Made by `remora build`")
    config = yaml.safe_load(text)
    parse(config)
    (app,) = config["applications"]
    assert (app["name"], app["route_prefix"]) == ("app1", "/")
    assert app["import_path"] == "build_me:app"
    front, model = app["deployments"]
    assert front == {"name": "Front"}
    assert model["name"] == "Model"
    assert model["num_replicas"] == 2
    assert model["user_config"] == {"a": 1}
    assert model["ray_actor_options"] == {"num_cpus": 0.5}
    assert model["backpressure_config"]["status_code"] == 429
    router = model["request_router_config"]["request_router_class"]
    assert router == "remora.experimental.round_robin_router:RoundRobinRouter"


def test_several_paths_have_routes_of_their_own_and_go_to_a_file(folder: Path) -> None:
    file = folder / "made.yaml"
    grpc = gRPCOptions(grpc_servicer_functions=["a.b"], enable_reflection=False)
    write_config(["build_me:app", "build_me:other"], folder, file, grpc)
    config = yaml.safe_load(file.read_text())
    assert [each["route_prefix"] for each in config["applications"]] == ["/app1", "/app2"]
    assert config["grpc_options"]["grpc_servicer_functions"] == ["a.b"]
    assert config["grpc_options"]["enable_reflection"] is False


def test_a_builder_is_called_without_arguments(folder: Path) -> None:
    file = folder / "made.yaml"
    write_config(["build_me:build"], folder, file, gRPCOptions())
    (app,) = yaml.safe_load(file.read_text())["applications"]
    assert app["import_path"] == "build_me:build"


def test_what_is_no_application_is_refused(folder: Path) -> None:
    with pytest.raises(CommandError, match="not an application"):
        write_config(["build_me:Local"], folder, None, gRPCOptions())


def test_a_folder_that_is_not_there(folder: Path) -> None:
    with pytest.raises(CommandError, match="cannot be written"):
        write_config(["build_me:app"], folder, folder / "none" / "made.yaml", gRPCOptions())
