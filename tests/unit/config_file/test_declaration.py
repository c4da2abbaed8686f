"""What may stand in a config, and what is said of what may not."""

from __future__ import annotations

from typing import Any

import pytest

from remora.config import ProxyLocation
from remora.config_file.declaration import DEPLOYMENT_KEYS, parse, problems
from remora.config_file.options import MAX_TOLD
from remora.config_file.problem import path_text
from remora.errors import ConfigFileError
from remora.options.deployment import KEYWORDS

#: The first and the third of them cannot be right.
REQUESTS = [{"path": "a"}, {"path": "/b"}, {"path": "/c", "times": 0}]


def app(**more: Any) -> dict[str, Any]:
    return {"import_path": "server:app", **more}


def told(*applications: Any, **more: Any) -> list[str]:
    return [str(each) for each in problems({"applications": list(applications), **more})]


def test_defaults_are_those_of_the_reference() -> None:
    (made,) = parse({"applications": [app()]}).applications
    assert (made.name, made.route_prefix, made.args, made.runtime_env) == ("default", "/", {}, {})
    assert made.deployments == ()


def test_http_of_a_config_listens_for_this_machine_unless_it_says_otherwise() -> None:
    given = {"applications": [], "http_options": {"root_path": "/x"}}
    http = parse(given).http
    assert http is not None
    assert (http.host, http.port) == ("127.0.0.1", 8000)


def test_what_was_written_is_kept_as_it_was() -> None:
    given = {"applications": [app(name="x")], "http_options": {"port": 0}}
    config = parse(given)
    assert config.given == given
    assert config.applications[0].given == app(name="x")
    assert config.http is not None
    assert config.http.port == 0
    assert config.grpc is None


def test_the_list_of_applications_may_be_empty_but_not_missing() -> None:
    assert parse({"applications": []}).applications == ()
    (missing,) = problems({})
    assert "the key 'applications' is missing" in str(missing)


def test_proxy_location() -> None:
    assert parse({"applications": [], "proxy_location": "HeadOnly"}).location is (
        ProxyLocation.HeadOnly
    )
    (wrong,) = told(proxy_location="HeadOnyl")
    assert wrong.startswith("proxy_location: 'HeadOnyl'")
    assert "Did you mean 'HeadOnly'?" in wrong


def test_every_option_of_a_deployment_can_be_written() -> None:
    assert set(DEPLOYMENT_KEYS) == set(KEYWORDS) - {"version"}


def test_engine_and_rest_api(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMORA_ADDRESS", "elsewhere:1")
    config = parse({"applications": [], "engine": "local", "admin_options": {"port": 1}})
    assert config.engine is not None
    assert config.engine.engine == "local"
    assert config.admin is not None
    assert config.admin.port == 1
    ray = parse({"applications": [], "address": "auto"}).engine
    assert ray is not None
    assert (ray.engine, ray.address) == ("ray", "auto")
    assert told(engine="rya")[0].startswith("engine: 'rya' is not allowed")
    assert "Did you mean 'port'" in told(admin_options={"prot": 1})[0]


def test_share_of_capacity() -> None:
    assert parse({"applications": [], "target_capacity": 50}).target_capacity == 50
    (wrong,) = told(target_capacity=101)
    assert wrong.startswith("target_capacity: 101 is not allowed")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (app(external_scaler_enabled="yes"), "must be true or false"),
        (app(autoscaling_policy={"policy": 1}), "applications[0].autoscaling_policy"),
        (
            app(imprt_path="x"),
            "applications[0].imprt_path: no such key. Did you mean 'import_path'",
        ),
        ({"name": "a"}, "applications[0]: the key 'import_path' is missing"),
        (app(import_path="a:b:c"), "has more than one colon"),
        (app(import_path="server app:x"), "'server app' is not a name"),
        (app(import_path="server"), "a part of it is missing"),
        (app(import_path=5), "must be text, not 5"),
        (app(name=""), "is not a name"),
        (app(name="a#b"), "is not a name"),
        (app(route_prefix="a"), "must start with '/': write '/a'"),
        (app(route_prefix="a/"), "must start with '/': write '/a'"),
        (app(route_prefix="/a/"), "must not end with '/': write '/a'"),
        (app(route_prefix="/{a}"), "must not contain blanks or wildcards"),
        (app(route_prefix=1), "must be text or null"),
        (app(args=[1]), "applications[0].args: must be a mapping, not a list ([1])"),
        (app(deployments={}), "must be a list"),
        (app(deployments=[{"num_replicas": 1}]), "the key 'name' is missing"),
        (app(deployments=[3]), "applications[0].deployments[0]: must be a mapping"),
        (
            app(deployments=[{"name": "X", "num_replicsa": 2}]),
            "applications[0].deployments[0].num_replicsa: no such key. Did you mean 'num_replicas'",
        ),
        (
            app(deployments=[{"name": "X", "max_ongoing_requests": 0}]),
            "applications[0].deployments[0].max_ongoing_requests: 0 is not allowed",
        ),
        (
            app(deployments=[{"name": "X", "ray_actor_options": {"num_cpus": -1}}]),
            "deployments[0].ray_actor_options.num_cpus: -1 is not allowed",
        ),
        (app(deployments=[{"name": "X"}, {"name": "X"}]), "is the name of"),
        (app(runtime_env={"env_vars": {"A": 1}}), "runtime_env.env_vars.A: must be text, not 1"),
        (
            app(runtime_env={"working_dir": 7}),
            "applications[0].runtime_env.working_dir: 7 is not allowed",
        ),
        (app(runtime_env=[]), "must be a mapping"),
        ("server:app", "applications[0]: it must be a mapping with keys"),
        (app(logging_config={"encoding": "XML"}), "logging_config.encoding"),
        (
            app(deployments=[{"name": "X", "logging_config": {"level": "INFO"}}]),
            "no such key",
        ),
    ],
)
def test_each_problem_is_named_with_its_place(given: Any, said: str) -> None:
    found = told(given)
    assert any(said in each for each in found), found


def test_two_applications_share_neither_name_nor_route() -> None:
    (name,) = told(app(), app(route_prefix="/b"))
    assert "applications[1].name: 'default' (the default) is the name of applications[0]" in name
    (route,) = told(app(name="a", route_prefix="/x"), app(name="b", route_prefix="/x"))
    assert "'/x' is the route_prefix of applications[0] too" in route
    assert told(app(name="a", route_prefix=None), app(name="b", route_prefix=None)) == []


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(ConfigFileError) as caught:
        parse({"applications": [app(name=1, args=2)], "prots": 3})
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize(
    ("given", "paths"),
    [
        (
            {"http_options": {"port": "x", "hots": 1, "num_proxies": 0, "ssl_keyfile": "k"}},
            ["port", "hots", "num_proxies", "ssl_certfile"],
        ),
        ({"grpc_options": {"port": -1, "max_message_bytes": 0}}, ["port", "max_message_bytes"]),
        ({"admin_options": {"host": 3, "port": "x"}}, ["host", "port"]),
        ({"node_options": {"ssl_certfile": 1, "cert": 2}}, ["ssl_certfile", "cert"]),
        ({"logging_config": {"encoding": "XML", "level": 1}}, ["encoding", "level"]),
        ({"tracing_config": {"enabled": 1, "sampling_ratio": 2}}, ["enabled", "sampling_ratio"]),
        (
            {"applications": [app(runtime_env={"env_vars": {"A": 1, "B": 2}, "excludes": 3})]},
            ["env_vars.A", "env_vars.B", "excludes"],
        ),
        (
            {
                "applications": [
                    app(runtime_env={"py_modules": [1, "a", 2], "pip": {"a": 1, "b": 2}})
                ]
            },
            ["py_modules[0]", "py_modules[2]", "pip.a", "pip.b"],
        ),
        (
            {"applications": [app(autoscaling_policy={"policy_function": 1, "kwargs": 2})]},
            ["policy_function", "kwargs"],
        ),
        (
            {"applications": [app(deployments=[{"name": "X", "warmup_requests": REQUESTS}])]},
            ["warmup_requests[0].path", "warmup_requests[2].times"],
        ),
    ],
)
def test_all_problems_of_one_group_of_options_are_told_at_once(
    given: dict[str, Any], paths: list[str]
) -> None:
    found = problems({"applications": [], **given})
    ends = sorted(path_text(each.path) for each in found)
    assert len(ends) == len(paths), found
    for path in paths:
        assert any(each.endswith(path) for each in ends), (path, ends)


def test_what_is_compared_with_something_wrong_is_not_told_beside_it() -> None:
    wrong = {"min_replicas": "x", "max_replicas": 0, "initial_replicas": 5}
    (one,) = told(app(deployments=[{"name": "X", "autoscaling_config": wrong}]))
    assert "autoscaling_config" in one


def test_a_group_of_options_with_endless_problems_ends() -> None:
    found = problems({"applications": [], "http_options": dict.fromkeys(map(str, range(500)), 1)})
    assert len(found) == MAX_TOLD


def test_keys_of_old_configs_say_where_they_went() -> None:
    (found,) = problems({"import_path": "server:app"})
    assert "it belongs to an application" in str(found)


@pytest.mark.parametrize("given", [None, 3, [], "applications"])
def test_a_config_is_a_mapping(given: object) -> None:
    (found,) = problems(given)
    assert "must be a mapping" in str(found)
