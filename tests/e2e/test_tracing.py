"""A real instance that traces: into its own file, and to an exporter of the user's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests import engines
from tests.e2e.test_script import lines_of, run_script

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(60)]

APP = """
@serve.deployment
class Asked:
    def __init__(self, doubler):
        self.doubler = doubler
    async def __call__(self, request):
        return await self.doubler.remote(21)
"""
TRACE = "0af7651916cd43dd8448eb211c80319c"
LATER = "1af7651916cd43dd8448eb211c80319c"


def script(config: str, then: str = "") -> str:
    return f"""{APP}
import json, pathlib, time, urllib.request
from remora.current import require_instance

serve.shutdown()
serve.start(tracing_config={config}, http_options={{"port": 0}})
serve.run(Asked.bind(Doubler.bind()))
url = require_instance().wait_ready()

def ask(trace):
    headers = {{"traceparent": f"00-{{trace}}-b7ad6b7169203331-01"}}
    print(urllib.request.urlopen(urllib.request.Request(url, headers=headers)).read().decode())

ask("{TRACE}")
{then}
"""


#: Only what is handed over when a process ends is sooner than that.
THEN = """
file = require_instance().home.logs / "spans.jsonl"
deadline = time.monotonic() + 30
while not file.exists() or file.read_text().count(TRACE) < 5:
    assert time.monotonic() < deadline, file.exists() and file.read_text()
    time.sleep(0.05)
ask(LATER)
"""


def spans_of(trace: str, text: str) -> dict[str, Any]:
    found = [json.loads(line) for line in text.splitlines()]
    return {span["name"]: span for span in found if span["context"]["trace_id"] == f"0x{trace}"}


def test_spans_of_all_processes_are_in_one_file(remora_home: Path) -> None:
    then = THEN.replace("TRACE", f'"0x{TRACE}"').replace("LATER", f'"{LATER}"')
    done = run_script(script('{"enabled": True}', then), remora_home)
    assert lines_of(done)[-2:] == ["42", "42"]
    text = (remora_home / "logs" / "spans.jsonl").read_text()
    ours = spans_of(TRACE, text)
    names = [
        "proxy_http_request Asked GET /",
        "route_to_replica Asked __call__",
        "replica_handle_request Asked __call__",
        "route_to_replica Doubler __call__",
        "replica_handle_request Doubler __call__",
    ]
    assert sorted(ours) == sorted(names)
    parents = ["0xb7ad6b7169203331", *(ours[name]["context"]["span_id"] for name in names[:-1])]
    assert [ours[name]["parent_id"] for name in names] == parents
    # On Ray, replicas are killed when the program ends that the instance belongs to.
    if not engines.is_ray():
        assert sorted(spans_of(LATER, text)) == sorted(names)


def test_an_exporter_that_is_not_there_is_told_and_everything_serves(remora_home: Path) -> None:
    config = '{"enabled": True, "exporter_import_path": "no_such_exporter:make"}'
    done = run_script(script(config), remora_home)
    assert lines_of(done)[-1] == "42"
    assert "no_such_exporter:make could not be used" in done.stderr
    assert not (remora_home / "logs" / "spans.jsonl").exists()
