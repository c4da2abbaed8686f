"""Every example does what its README says, run as a user runs it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from tests.examples.conftest import EXAMPLES, Serve

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(120)]


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=30) as response:
        return json.load(response)


@pytest.mark.parametrize(
    "name",
    ("hello_world", "model_composition", "fastapi_integration", "multiplexing", "batching"),
)
def test_client_prints_what_the_readme_promises(serve_example: Serve, name: str) -> None:
    with serve_example(name, "server:app") as example:
        assert example.client() == example.expected()


def test_grpc_prints_what_its_readme_promises(serve_example: Serve) -> None:
    flags = ("--grpc-port", "0", "--grpc-servicer-functions")
    function = "fish_pb2_grpc.add_HarbourServicer_to_server"
    with serve_example("grpc", *flags, function, "server:app") as example:
        address = re.search(r"gRPC (127\.0\.0\.1:\d+)", "".join(example.output))
        assert address is not None
        example.url = address[1]
        assert example.client() == example.expected()


def test_quickstart_prints_what_its_readme_promises_and_documents_itself(
    serve_example: Serve,
) -> None:
    with serve_example("quickstart", "serve:app") as example:
        assert example.client() == example.expected()
        assert get(example.url)["species"] == "versicolor"
        with urllib.request.urlopen(f"{example.url}/docs", timeout=30) as page:
            assert b"swagger" in page.read().lower()
        schema = get(f"{example.url}/openapi.json")
        assert schema["components"]["schemas"]["Flower"]["properties"]["petal_width"]["maximum"]


def test_transformers_pipeline_serves_a_model_from_a_folder(
    serve_example: Serve, tmp_path: Path
) -> None:
    texts = ["What a lovely day!", "This is a sad story."]
    made = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("tiny_model.py")), str(tmp_path), *texts],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    with serve_example("transformers_pipeline", "server:build", f"model={tmp_path}") as example:
        answers = [json.loads(line) for line in example.client().splitlines()]
    assert answers == [json.loads(line) for line in made.stdout.splitlines()]


def test_every_example_has_a_readme_a_client_and_a_test() -> None:
    names = {folder.name for folder in EXAMPLES.iterdir() if folder.is_dir()}
    names -= {"__pycache__"}
    text = Path(__file__).read_text()
    for name in names:
        assert (EXAMPLES / name / "README.md").is_file()
        assert (EXAMPLES / name / "client.py").is_file()
        assert f'"{name}"' in text
