"""Config files: YAML, lines, and what no file may hold."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from remora.config_file.declaration import MAX_CONFIG_BYTES
from remora.config_file.read import load, read
from remora.errors import ConfigFileError


def error_of(text: str) -> str:
    with pytest.raises(ConfigFileError) as caught:
        read(text, "serve.yaml")
    return str(caught.value)


def test_problems_are_told_with_file_and_line(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(
        "applications:\n"
        "  - import_path: server:app\n"
        "    deployments:\n"
        "      - name: X\n"
        "        num_replicas: 0\n"
        "      - nmae: Y\n"
    )
    with pytest.raises(ConfigFileError) as caught:
        load(file)
    first, second, third = caught.value.problems
    assert first.startswith(f"{file}:5: applications[0].deployments[0].num_replicas: 0")
    assert second.startswith(f"{file}:6: applications[0].deployments[1].nmae: no such key.")
    assert third.startswith(f"{file}:6: applications[0].deployments[1]: the key 'name' is missing")


def test_every_problem_of_a_deployment_is_told_in_the_order_of_lines(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(
        "applications:\n"
        "  - import_path: server:app\n"
        "    deployments:\n"
        "      - name: X\n"
        "        max_ongoing_requests: lots\n"
        "        graceful_shutdown_timeout_s: yes\n"
        "        ray_actor_options: {num_gpu: 1, num_cpus: -1}\n"
        "        unknown: 1\n"
        "        max_surge_percent: 200\n"
        "        autoscaling_config:\n"
        "          min_replicas: 5\n"
        "          max_replicas: 2\n"
        "          initial_replicas: 4\n"
        "          foo: 1\n"
        "      - name: Y\n"
        "        num_replicas: -2\n"
        "        max_replicas_per_node: few\n"
        "        idempotent: maybe\n"
        "        gang_scheduling_config: {gang_size: 2}\n"
    )
    with pytest.raises(ConfigFileError) as caught:
        load(file)
    lines = [int(each.removeprefix(f"{file}:").partition(":")[0]) for each in caught.value.problems]
    assert lines == [5, 6, 7, 7, 8, 9, 12, 14, 16, 17, 18], "\n".join(caught.value.problems)


def test_a_good_file(tmp_path: Path) -> None:
    file = tmp_path / "serve.json"
    file.write_text('{"applications": [{"import_path": "a:b", "args": {"n": 1.5}}]}')
    assert load(file).applications[0].args == {"n": 1.5}


def test_anchors_and_merges_work_and_dates_stay_text() -> None:
    value, _ = read("a: &x {n: 1, m: 2}\nb: {<<: *x, m: 3}\nc: 2024-01-01\nd: *x", "f")
    assert value["b"] == {"n": 1, "m": 3}
    assert value["c"] == "2024-01-01"
    assert value["d"] == {"n": 1, "m": 2}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "serve.yaml:1: the file is empty"),
        ("a: [1\n", "is not YAML"),
        ("a: 1\nb: 2\na: 3\n", "serve.yaml:3: the key 'a' comes twice"),
        ("a: !!python/object:os.system {}", "cannot stand in a config"),
        ("a: !secret x", "is not YAML"),
        ("a: .nan", "no number"),
        ("a: !!binary aGFsbG8=", "cannot stand in a config"),
        ("? [1]\n: 2", "a key must be text"),
        ("a: &a {b: *a}", "too large"),
        ("---\na: 1\n---\nb: 1\n", "is not YAML"),
    ],
)
def test_what_no_config_can_hold(text: str, said: str) -> None:
    assert said in error_of(text)


def test_aliases_cannot_make_a_small_file_huge() -> None:
    lines = ["a0: &a0 [x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    assert "too large" in error_of("\n".join(lines))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigFileError, match="No such file"):
        load(tmp_path / "none.yaml")
    with pytest.raises(ConfigFileError, match="Is a directory"):
        load(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigFileError, match="UTF-8"):
        load(tmp_path / "binary.yaml")
    large = tmp_path / "large.yaml"
    with large.open("wb") as file:
        file.truncate(MAX_CONFIG_BYTES + 1)
    with pytest.raises(ConfigFileError, match="are no config"):
        load(large)


def test_several_documents_are_one_config_and_problems_have_the_lines_of_each(
    tmp_path: Path,
) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(
        "---\nname: a\nroute_prefix: /a\nimport_path: server:app\n"
        "---\ntarget_capacity: 50\napplications:\n  - {name: b, import_path: server:app}\n"
        "---\nname: c\nroute_prefix: /c\nimport_path: server:app\n---\n"
    )
    config = load(file)
    assert [app.name for app in config.applications] == ["b", "a", "c"]
    assert config.target_capacity == 50

    file.write_text(file.read_text().replace("route_prefix: /c", "route_prefix: c"))
    with pytest.raises(ConfigFileError) as caught:
        load(file)
    (one,) = caught.value.problems
    assert one.startswith(f"{file}:11: applications[2].route_prefix: 'c' must start")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("applications: []\n---\nhttp_options: {}\n", "serve.yaml:3: a file has one document"),
        ("import_path: a:b\n---\n[1]\n---\nimport_path: a:b\n", "must be a mapping with keys"),
        ("import_path: a:b\n---\napplications: x\n", "applications: must be a list"),
        ("import_path: a:b\nhost: x\n", "it is http_options.host now"),
        ("---\n---\n", "the file is empty"),
    ],
)
def test_documents_that_are_no_config_together(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(text)
    with pytest.raises(ConfigFileError, match=re.escape(said)):
        load(file)


def test_it_is_kept_in_which_line_each_deployment_is_named(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(
        "applications:\n"
        "  - import_path: server:app\n"
        "    deployments:\n"
        "      - num_replicas: 2\n"
        "        name: X\n"
    )
    (app,) = load(file).applications
    assert app.places == {"X": f"{file}:5: applications[0].deployments[0].name"}
