"""What lies in deploy/: Kubernetes takes it, and the parts fit each other and the commands."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from click.testing import CliRunner
from ray.dashboard.modules.job.cli import submit
from ray.scripts.scripts import drain_node

from remora.cli.main import cli

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))


def documents(path: Path) -> list[dict[str, Any]]:
    return [each for each in yaml.safe_load_all(path.read_text(encoding="utf-8")) if each]


ALL = [(path.name, each) for path in MANIFESTS for each in documents(path)]
#: The operators that bring these kinds bring their schemas, too; what of them is Kubernetes' own is
#: looked at in their pods.
CUSTOM = {"RayCluster"}


def pod_specs(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """Every description of pods in a manifest."""
    spec = manifest["spec"]
    if manifest["kind"] == "RayCluster":
        groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
        return [group["template"] for group in groups]
    return [spec["template"]] if "template" in spec else []


@pytest.mark.parametrize(("file", "manifest"), ALL)
def test_kubernetes_knows_every_field(file: str, manifest: dict[str, Any]) -> None:
    version = kubernetes_validate.latest_version()
    if manifest["kind"] not in CUSTOM:
        kubernetes_validate.validate(manifest, version, strict=True)
    for template in pod_specs(manifest):
        pod = {"apiVersion": "v1", "kind": "Pod", **template}
        pod["metadata"] = {"name": "x", **template["metadata"]}
        kubernetes_validate.validate(pod, version, strict=True)


def test_a_field_that_does_not_exist_is_noticed() -> None:
    _, manifest = next(pair for pair in ALL if pair[1]["kind"] == "Service")
    wrong = {**manifest, "spec": {**manifest["spec"], "selectr": {}}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, kubernetes_validate.latest_version(), strict=True)


def test_services_find_pods_and_probes_find_ports() -> None:
    pods = [pod for _, each in ALL if each["kind"] != "Job" for pod in pod_specs(each)]
    for _, service in (pair for pair in ALL if pair[1]["kind"] == "Service"):
        wanted = service["spec"]["selector"].items()
        found = [pod for pod in pods if wanted <= pod["metadata"]["labels"].items()]
        assert found
        for pod in found:
            (container,) = pod["spec"]["containers"]
            names = {port["name"] for port in container["ports"]}
            assert {port["targetPort"] for port in service["spec"]["ports"]} <= names
    for pod in pods:
        (container,) = pod["spec"]["containers"]
        probe = container["readinessProbe"]["httpGet"]
        assert probe["path"] in ("/-/healthz", "/-/livez")
        assert probe["port"] in {port["name"] for port in container["ports"]}
        sleep = int(container["lifecycle"]["preStop"]["exec"]["command"][-1].split()[-1])
        assert pod["spec"]["terminationGracePeriodSeconds"] > sleep + 20


def commands() -> list[str]:
    """Every command line of ours in deploy/."""
    found = []
    for _, manifest in ALL:
        for pod in pod_specs(manifest):
            for container in pod["spec"]["containers"]:
                if args := container.get("args"):
                    found.append(shlex.join(args))
                hook = container.get("lifecycle", {}).get("postStart", {}).get("exec", {})
                scripts = (hook.get("command", [""])[-1], container.get("command", [""])[-1])
                for script in scripts:
                    found += re.findall(r"\bremora ([^;]*)", script)
    text = (DEPLOY / "ray-up.yaml").read_text(encoding="utf-8")
    found += re.findall(r"'remora ([^']*)'", text.partition("cluster_name")[0])
    return found


@pytest.mark.parametrize("line", commands())
def test_command_lines_are_those_of_the_command(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    monkeypatch.setattr("remora.cli.run.run_application", seen.append)
    monkeypatch.setattr("remora.cli.lifecycle.start_instance", lambda *given: seen.append(given))
    result = CliRunner().invoke(cli, shlex.split(line))
    assert result.exit_code == 0, result.output
    assert len(seen) == 1


def test_the_job_asks_the_head_of_the_cluster() -> None:
    text = (DEPLOY / "kubernetes" / "ray-cluster.yaml").read_text(encoding="utf-8")
    (cluster,) = (each for _, each in ALL if each["kind"] == "RayCluster")
    (given,) = re.findall(r"ray job submit ([^\"]*)\"", text)
    words = submit.make_context("submit", shlex.split(given.replace("\n", " "))).params
    # As KubeRay names the service of a cluster's head.
    assert words["address"] == f"http://{cluster['metadata']['name']}-head-svc:8265"
    assert words["entrypoint"][:2] == ("remora", "run")


def test_ray_knows_the_command_that_drains_a_node() -> None:
    text = (DEPLOY / "kubernetes" / "ray-cluster.yaml").read_text(encoding="utf-8")
    (found,) = re.findall(r"ray drain-node ([^;]*);", text)
    given = drain_node.make_context("drain-node", shlex.split(found)).params
    assert given["node_id"] is None
    assert given["deadline_remaining_seconds"] == 60


def test_versions_of_ray_are_one() -> None:
    named = set()
    for path in DEPLOY.rglob("*"):
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            named |= set(
                re.findall(r"(?:RAY_VERSION=|rayVersion: \"|ray\[default\]==)([0-9.]+)", text)
            )
    pinned = (DEPLOY.parent / "constraints.txt").read_text(encoding="utf-8")
    assert named == set(re.findall(r"^ray==(.+)$", pinned, re.MULTILINE))


def test_the_cluster_of_machines_is_one_that_ray_can_start() -> None:
    (cluster,) = documents(DEPLOY / "ray-up.yaml")
    types = cluster["available_node_types"]
    assert cluster["head_node_type"] in types
    assert sum(each["max_workers"] for each in types.values()) <= cluster["max_workers"]
    assert all(each.get("min_workers", 0) <= each["max_workers"] for each in types.values())
