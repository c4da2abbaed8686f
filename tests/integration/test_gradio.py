"""A Gradio interface behind the front door.

Gradio itself is a few hundred megabytes, so a module stands in for it that has what is used of it: `Blocks`, and
`mount_gradio_app(app, blocks, path)`, which mounts an ASGI app and adds to the lifespan.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send
from tests.integration.http_client import ask
from tests.integration.rig import Rig

from remora.build.graph import build
from remora.deployment import deployment
from remora.errors import ReplicaStartError
from remora.gradio_integrations import GradioIngress, GradioServer

pytestmark = pytest.mark.one_loop


class Blocks:
    """What a builder returns."""

    def __init__(self, greeting: str) -> None:
        self.greeting = greeting


def mount_gradio_app(app: FastAPI, blocks: Blocks, path: str) -> FastAPI:
    """Serve `blocks` below `path`."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        answer = {"says": blocks.greeting, "root_path": scope["root_path"], "path": scope["path"]}
        await JSONResponse(answer)(scope, receive, send)

    app.mount(path, serve)
    return app


@pytest.fixture
def _gradio(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("gradio")
    vars(module).update(Blocks=Blocks, mount_gradio_app=mount_gradio_app)
    monkeypatch.setitem(sys.modules, "gradio", module)


def hello() -> Blocks:
    return Blocks("hello")


@pytest.mark.usefixtures("_gradio")
async def test_an_interface_is_built_in_its_replica_and_served(rig: Rig) -> None:
    node = await rig.node(GradioIngress, hello)
    door = await rig.door(node)
    answer = await ask(door, "/some/page?x=1")
    assert answer.status == 200
    assert b'"says":"hello"' in answer.body
    assert b'"path":"/some/page"' in answer.body


@pytest.mark.usefixtures("_gradio")
async def test_a_subclass_may_have_more_in_its_constructor(rig: Rig) -> None:
    class Page(GradioIngress):
        def __init__(self, word: str) -> None:
            self.word = word
            super().__init__(lambda: Blocks(self.word))

    door = await rig.door(await rig.node(Page, "good evening"))
    assert b"good evening" in (await ask(door, "/")).body


@pytest.mark.usefixtures("_gradio")
async def test_a_builder_of_something_else_is_told(rig: Rig) -> None:
    def wrong() -> Any:
        return FastAPI()

    with pytest.raises(ReplicaStartError, match=r"must return a gradio\.Blocks, not FastAPI"):
        await rig.node(GradioIngress, wrong)


async def test_without_gradio_the_error_says_what_to_install(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(Exception, match=r"pip install 'remora\[gradio\]'"):
        await rig.node(GradioIngress, hello)


def test_gradio_server_is_a_deployment_that_takes_a_builder() -> None:
    app = GradioServer.options(name="Ui", max_ongoing_requests=50).bind(hello)
    (spec,) = build(app).deployments
    assert (spec.name, spec.config.max_ongoing_requests) == ("Ui", 50)
    assert GradioServer.name == "GradioServer"
    own = deployment(name="Own")(GradioIngress)
    assert build(own.bind(hello)).ingress == "Own"
