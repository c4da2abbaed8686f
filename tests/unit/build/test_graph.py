"""A graph of bound applications becomes one specification."""

from __future__ import annotations

import importlib
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from remora.build.graph import build, check_route_prefix, surroundings_of_this_process
from remora.deployment import Application, deployment
from remora.errors import ConfigError, RayServeException
from remora.handle import DeploymentHandle
from remora.ingress import ingress
from remora.wire.control import ApplicationSpec, DeploymentSpec


@dataclass
class Box:
    content: Any


class Leaf:
    pass


class Root:
    pass


def opened(spec: DeploymentSpec) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    return pickle.loads(spec.code)  # type: ignore[no-any-return]


def named(spec: ApplicationSpec) -> dict[str, DeploymentSpec]:
    return {one.name: one for one in spec.deployments}


def test_a_single_deployment_is_the_ingress() -> None:
    spec = build(deployment(num_replicas=3)(Root).bind(1, a=2), "app", "/r")
    assert (spec.name, spec.ingress, spec.route_prefix) == ("app", "Root", "/r")
    cls, args, kwargs = opened(named(spec)["Root"])
    assert (cls.__name__, args, kwargs) == ("Root", (1,), {"a": 2})
    assert named(spec)["Root"].config.num_replicas == 3


def test_applications_become_handles_wherever_they_are_nested() -> None:
    leaf = deployment(Leaf)
    spec = build(
        deployment(Root).bind(
            leaf.options(name="a").bind(),
            [leaf.options(name="b").bind()],
            {"k": (leaf.options(name="c").bind(),)},
            box=Box(leaf.options(name="d").bind()),
        ),
        "app",
    )
    assert set(named(spec)) == {"Root", "a", "b", "c", "d"}
    _, args, kwargs = opened(named(spec)["Root"])
    found = [args[0], args[1][0], args[2]["k"][0], kwargs["box"].content]
    assert all(isinstance(handle, DeploymentHandle) for handle in found)
    assert [handle.deployment_name for handle in found] == ["a", "b", "c", "d"]
    assert {handle.app_name for handle in found} == {"app"}


def test_a_shared_node_is_one_deployment() -> None:
    leaf = deployment(Leaf).bind()
    middle = deployment(name="Middle")(Root).bind(leaf)
    spec = build(deployment(Root).bind(leaf, middle))
    assert sorted(named(spec)) == ["Leaf", "Middle", "Root"]


def test_other_nodes_of_the_same_name_are_numbered(caplog: pytest.LogCaptureFixture) -> None:
    leaf = deployment(Leaf)
    spec = build(deployment(Root).bind(leaf.bind(1), leaf.bind(2), leaf.bind(3)))
    assert set(named(spec)) == {"Root", "Leaf", "Leaf_1", "Leaf_2"}
    _, args, _ = opened(named(spec)["Root"])
    assert [opened(named(spec)[h.deployment_name])[1] for h in args] == [(1,), (2,), (3,)]
    assert "Leaf_1" in caplog.text


def version_of(target: Application, code_version: str | None = None) -> str:
    return build(target, code_version=code_version).deployments[0].code_version


def test_a_version_stays_while_code_and_arguments_do(monkeypatch: pytest.MonkeyPatch) -> None:
    made = deployment(Root)
    version = version_of(made.bind(1))
    assert version_of(made.bind(1)) == version
    assert version_of(made.options(user_config={"a": 1}, num_replicas=3).bind(1)) == version
    assert version_of(made.bind(2)) != version
    assert version_of(deployment(Leaf).bind(1)) != version
    assert version_of(made.bind(1), "v") == "v"
    monkeypatch.setattr("remora.build.graph._THIS_PROCESS", "another")
    assert version_of(made.bind(1)) != version


def test_a_version_changes_with_the_file_of_a_class_that_goes_by_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "versioned_module.py"
    file.write_text("class Model: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    app = deployment(importlib.import_module("versioned_module").Model).bind()
    version = version_of(app)
    assert version_of(app) == version
    file.write_text("class Model: pass  # edited\n")
    assert version_of(app) != version


def test_only_one_ingress() -> None:
    async def asgi(scope: Any, receive: Any, send: Any) -> None: ...

    inner = deployment(name="Inner")(ingress(asgi)(type("Inner", (), {})))
    outer = deployment(name="Outer")(ingress(asgi)(type("Outer", (), {})))
    with pytest.raises(RayServeException, match=r"Outer, Inner"):
        build(outer.bind(inner.bind()))


def test_only_applications_can_be_built() -> None:
    with pytest.raises(TypeError, match=r"Root\.bind"):
        build(deployment(Root))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="Application"):
        build(Root)  # type: ignore[arg-type]


def test_the_name_must_not_be_empty() -> None:
    with pytest.raises(RayServeException):
        build(deployment(Root).bind(), "")


@pytest.mark.parametrize("good", ["/", "/a", "/a/b", None])
def test_takes_good_prefixes(good: str | None) -> None:
    check_route_prefix(good)


@pytest.mark.parametrize("bad", ["", "a", "/a/", "/{x}", "/a b", 3])
def test_refuses_bad_prefixes(bad: Any) -> None:
    with pytest.raises(ConfigError, match="route_prefix"):
        check_route_prefix(bad)


def test_surroundings_name_what_is_not_installed() -> None:
    found = surroundings_of_this_process()
    assert found.cwd
    assert not any("site-packages" in path for path in found.sys_path)
    assert "fastapi" not in found.preload or "fastapi" in __import__("sys").modules


def test_what_a_deployment_was_bound_with_is_told() -> None:
    leaf = deployment(Leaf)
    shared = leaf.options(name="shared").bind()
    middle = deployment(Root).options(name="middle").bind(shared)
    spec = build(deployment(Root).options(name="root").bind(middle, [shared, middle]), "app")
    assert {each.name: each.calls for each in spec.deployments} == {
        "root": ("middle", "shared"),
        "middle": ("shared",),
        "shared": (),
    }
