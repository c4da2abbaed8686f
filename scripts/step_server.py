"""Serves the application of `step_load.py`, on Remora or on Ray Serve, and tells of its replicas.

    python scripts/step_server.py remora|ray PORT

Prints `ready`, then four times a second one line of JSON, until its standard input is closed.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
import threading
import time
from typing import Any

#: What a handler takes: the time of a small model on an accelerator, so that no processor is short.
SERVICE_S = 0.2
AUTOSCALING = {
    "min_replicas": 1,
    "max_replicas": 10,
    "target_ongoing_requests": 2,
    "upscale_delay_s": 5,
    "downscale_delay_s": 30,
}


class Slow:
    """Waits, as a handler does that asks an accelerator."""

    async def __call__(self, request: Any) -> str:
        """Answer after a while."""
        await asyncio.sleep(SERVICE_S)
        return "ok"


def main() -> None:
    """Serve, and tell."""
    name, port = sys.argv[1], int(sys.argv[2])
    serve = importlib.import_module("remora" if name == "remora" else "ray.serve")
    options: dict[str, Any] = {"autoscaling_config": AUTOSCALING, "max_ongoing_requests": 5}
    if name == "ray":
        import ray

        # Its replicas reserve one processor each unless they say otherwise.
        options["ray_actor_options"] = {"num_cpus": 0}
        ray.init(include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"port": port})
    serve.run(serve.deployment(Slow).options(**options).bind(), name="step", route_prefix="/")
    print("ready", flush=True)
    ended = threading.Event()

    def wait_for_end() -> None:
        sys.stdin.read()
        ended.set()

    threading.Thread(target=wait_for_end, daemon=True).start()
    while not ended.wait(0.25):
        found = serve.status().applications["step"].deployments["Slow"].replica_states
        states = {str(getattr(state, "value", state)): count for state, count in found.items()}
        running = states.get("RUNNING", 0)
        # Both count those that come and those that go apart; neither's `status` has the target.
        target = running + sum(states.get(each, 0) for each in ("PENDING", "STARTING"))
        line = {"at": time.time(), "target": target, "running": running}
        print(json.dumps(line), flush=True)
    serve.shutdown()


if __name__ == "__main__":
    main()
