"""What a builder makes of one application of a config."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from remora.build.builder import describe, users_modules
from remora.config import AutoscalingConfig
from remora.errors import AppLoadError, ConfigError
from remora.wire.control import ApplicationSpec, DeclaredApplication, Surroundings

MODULE = """
from pydantic import BaseModel

import remora as serve


class Args(BaseModel):
    size: int


@serve.deployment(num_replicas=2, ray_actor_options={"runtime_env": {"env_vars": {"A": "code"}}})
class Model:
    def __init__(self, size=0):
        self.size = size

    def __call__(self):
        return self.size


@serve.deployment
class Front:
    def __init__(self, model):
        self.model = model


app = Front.bind(Model.bind())


def build(args: Args):
    return Front.bind(Model.bind(args.size))


def fail(args):
    raise ValueError("no weights")
"""

Describe = Callable[..., ApplicationSpec]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "built_app.py").write_text(MODULE)
    before = list(sys.path)
    yield tmp_path
    sys.path[:] = before
    sys.modules.pop("built_app", None)


@pytest.fixture
def made(folder: Path) -> Describe:
    def make(attribute: str = "app", **given: Any) -> ApplicationSpec:
        sys.modules.pop("built_app", None)
        whole = {"name": "x", "import_path": f"built_app:{attribute}", **given}
        return describe(
            DeclaredApplication(
                name="x",
                route_prefix="/",
                given=json.dumps(whole).encode(),
                surroundings=Surroundings(sys_path=(str(folder),), cwd=str(folder)),
            )
        )

    return make


def test_where_the_builder_happens_to_be_is_no_place_to_import_from(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    given = b'{"name": "x", "import_path": "built_app:app"}'
    with pytest.raises(AppLoadError, match=r"no module 'built_app' on sys.path.*`working_dir`"):
        describe(DeclaredApplication(name="x", route_prefix="/", given=given))


def test_options_of_the_config_take_the_place_of_those_in_the_code(made: Describe) -> None:
    front, model = made(deployments=[{"name": "Model", "max_ongoing_requests": 7}]).deployments
    assert (front.name, model.name) == ("Front", "Model")
    assert model.config.max_ongoing_requests == 7
    assert model.config.num_replicas == 2
    assert front.config.max_ongoing_requests == 5


def test_a_config_scales_by_demand_what_has_a_number_in_the_code(made: Describe) -> None:
    scaling = {"min_replicas": 1, "max_replicas": 3}
    model = made(deployments=[{"name": "Model", "autoscaling_config": scaling}]).deployments[1]
    assert model.config.autoscaling_config == AutoscalingConfig(min_replicas=1, max_replicas=3)


def test_an_option_that_a_config_leaves_out_again_is_that_of_the_code(made: Describe) -> None:
    given = [{"name": "Model", "max_ongoing_requests": 7, "num_replicas": 4}]
    changed, restored = made(deployments=given), made(deployments=[{"name": "Model"}])
    assert restored.deployments[1].config == made().deployments[1].config
    assert restored.deployments[1].config != changed.deployments[1].config


def test_one_builder_makes_several_applications_each_with_its_arguments(made: Describe) -> None:
    one, two = (made("build", args={"size": size}) for size in (1, 2))
    assert [each.name for each in one.deployments] == [each.name for each in two.deployments]
    assert one.deployments[1].code != two.deployments[1].code


def test_the_environment_of_the_application_is_that_of_its_deployments_which_may_differ(
    made: Describe,
) -> None:
    env = {"env_vars": {"A": "app", "B": "app"}}
    front, model = made(runtime_env=env).deployments
    assert front.config.env_vars == {"A": "app", "B": "app"}
    assert model.config.env_vars == {"A": "code", "B": "app"}


def test_arguments_of_a_builder_are_typed(made: Describe) -> None:
    assert len(made("build", args={"size": "3"}).deployments) == 2
    with pytest.raises(AppLoadError, match="The arguments do not fit"):
        made("build", args={"size": "many"})


def test_the_same_config_and_code_is_the_same_version(made: Describe, folder: Path) -> None:
    def version(**given: Any) -> str:
        return made("build", **given).deployments[0].code_version

    first = version(args={"size": 1})
    assert version(args={"size": 1}) == first
    assert version(args={"size": 1}, deployments=[{"name": "Model", "num_replicas": 3}]) == first
    assert version(args={"size": 2}) != first
    assert version(args={"size": 1}, runtime_env={"env_vars": {"C": "d"}}) != first
    file = folder / "built_app.py"
    file.touch()
    assert version(args={"size": 1}) == first
    file.write_text(MODULE + "\nedited = True\n")
    assert version(args={"size": 1}) != first


def test_an_unknown_deployment_is_named_with_those_there_are(made: Describe) -> None:
    with pytest.raises(ConfigError, match=r"Did you mean 'Model'\? It has Front, Model"):
        made(deployments=[{"name": "Modle"}])


def test_all_unknown_deployments_are_told_with_their_lines(folder: Path) -> None:
    given = {
        "name": "a",
        "import_path": "built_app:app",
        "deployments": [{"name": "Modle"}, {"name": "Model"}, {"name": "Back"}],
    }
    declared = DeclaredApplication(
        name="a",
        route_prefix="/",
        given=json.dumps(given).encode(),
        surroundings=Surroundings(sys_path=(str(folder),), cwd=str(folder)),
        places={"Modle": "serve.yaml:5: applications[0].deployments[0].name"},
    )
    with pytest.raises(ConfigError) as caught:
        describe(declared)
    assert str(caught.value).splitlines() == [
        (
            "serve.yaml:5: applications[0].deployments[0].name: built_app:app has no deployment "
            "'Modle'. Did you mean 'Model'? It has Front, Model."
        ),
        "deployments of 'a': built_app:app has no deployment 'Back'. It has Front, Model.",
    ]


def test_options_that_do_not_fit_the_code_are_named_with_the_deployment(made: Describe) -> None:
    with pytest.raises(AppLoadError, match="do not fit deployment 'Model': num_replicas"):
        made(deployments=[{"name": "Model", "num_replicas": -1}])


def test_a_builder_that_raises_shows_the_users_traceback_alone(made: Describe) -> None:
    with pytest.raises(AppLoadError) as caught:
        made("fail")
    assert "ValueError: no weights" in caught.value.user_traceback
    assert caught.value.user_traceback.count("File ") == 1


def test_arguments_for_an_application_that_takes_none(made: Describe) -> None:
    with pytest.raises(AppLoadError, match="takes no arguments, but got size"):
        made(args={"size": 1})


def test_the_library_itself_is_no_module_of_the_users() -> None:
    found = users_modules()
    assert __name__ in found
    assert not [name for name in found if name.split(".")[0] == "remora"]
