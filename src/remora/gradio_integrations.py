"""Gradio applications as deployments. Needs `pip install 'remora[gradio]'`.

What travels to a replica is the function that builds the interface, never the interface itself:
each replica builds its own and serves it like every other ASGI app.

Rules: Gradio is imported in replicas only, when the app is built.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from remora.deployment import deployment
from remora.errors import RemoraError
from remora.ingress import ASGIApp, ingress

__all__ = ["GradioIngress", "GradioServer"]


@ingress()
class GradioIngress:
    """Serves a Gradio interface; make a subclass to use other deployments in it.

    A visitor's events go to the replica that has answered the first of them: with more than one
    replica they need a router that keeps sessions together.
    """

    def __init__(self, builder: Callable[[], Any]) -> None:
        """Keep the builder.

        Args:
            builder: returns a `gradio.Blocks` (an `Interface` is one); called once in each
                replica, when its constructor has ended.
        """
        self._builder = builder

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Build the interface and its app.

        Raises:
            RemoraError: Gradio is not installed where replicas run.
            TypeError: the builder returned something else.
        """
        try:
            import gradio
        except ImportError as error:
            raise RemoraError(
                "A Gradio deployment needs Gradio where replicas run: pip install 'remora[gradio]' "
                f"({error})"
            ) from error
        from fastapi import FastAPI

        blocks = self._builder()
        if not isinstance(blocks, gradio.Blocks):
            raise TypeError(
                f"The builder of a Gradio deployment must return a gradio.Blocks, not "
                f"{type(blocks).__name__} ({blocks!r})"
            )
        app: ASGIApp = gradio.mount_gradio_app(FastAPI(), blocks, path="")
        return app


#: Use it as `GradioServer.options(...).bind(builder)`.
GradioServer = deployment(name="GradioServer")(GradioIngress)
