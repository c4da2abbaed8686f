"""The process of one policy of the user's.

It is a process of its own because nothing else bounds what user code can do: one that loops, that
holds the interpreter in a library, or that calls `exit` takes itself away and nobody else, and is
ended when its time is up. It is not a replica, because a policy decides also where none runs.

The policy runs on the event loop, as its authors expect: it may start tasks and threads of its
own. While it computes, nothing else happens here, and nothing else needs to.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import math
import os
import pickle
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any

import uvloop

from remora.autoscaling_context import AutoscalingContext, TimeStampedValue
from remora.engine.base import ProcessContext
from remora.errors import PolicyError
from remora.observe.logs import log_of_system_process
from remora.observe.tracebacks import user_traceback
from remora.options.autoscaling import ScalingPolicySetup
from remora.transport.control import ControlHandler, serve_control
from remora.types import DeploymentID
from remora.wire.codec import pack, unpack
from remora.wire.scaling import PolicyAnswer, PolicyQuestion, PolicySpec, PolicyView

_log = logging.getLogger("remora.policy")


class PolicyRunner:
    """One policy, and what it returned last."""

    def __init__(self, sys_path: tuple[str, ...] = ()) -> None:
        """Make it.

        Args:
            sys_path: of its `runtime_env`; comes before the folders of its application.
        """
        self._sys_path = sys_path
        self._policy: Callable[..., Any] | None = None
        self._spec: PolicySpec | None = None
        self._states: dict[DeploymentID, dict[str, Any]] = {}

    @property
    def handlers(self) -> Mapping[str, ControlHandler]:
        """The control methods by name."""
        return {"load": self._load, "decide": self._decide}

    async def _load(self, body: bytes) -> bytes:
        spec = unpack(body, PolicySpec)
        for path in reversed((*self._sys_path, *spec.surroundings.sys_path)):
            if path not in sys.path:
                sys.path.insert(0, path)
        self._spec = spec
        try:
            self._policy = make_policy(spec.setup)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - border: user code
            raise PolicyError(f"{spec.name} could not be made.\n{user_traceback(error)}") from None
        return b""

    async def _decide(self, body: bytes) -> bytes:
        return pack(await self.decide(unpack(body, PolicyQuestion)))

    async def decide(self, question: PolicyQuestion) -> PolicyAnswer:
        """Ask the policy.

        Raises:
            PolicyError: it raised, or its answer is none.
        """
        assert self._policy is not None
        assert self._spec is not None
        contexts = {
            view.deployment: context_of(view, self._states.get(view.deployment, {}))
            for view in question.views
        }
        is_for_all = self._spec.scope == "application"
        argument: Any = contexts if is_for_all else next(iter(contexts.values()))
        try:
            answer = self._policy(argument)
            if inspect.isawaitable(answer):
                answer = await answer
        except (Exception, SystemExit) as error:  # noqa: BLE001 - border: user code
            raise PolicyError(f"{self._spec.name} failed.\n{user_traceback(error)}") from None
        if is_for_all:
            nums, states = checked_for_all(self._spec.name, answer, contexts)
        else:
            (only,) = contexts
            num, state = checked(self._spec.name, answer)
            nums, states = {only: num}, {only: state}
        self._states.update(states)
        return PolicyAnswer(nums)


def make_policy(setup: ScalingPolicySetup) -> Callable[..., Any]:
    """Open a policy: a class is made with its arguments, a function gets them as keywords."""
    found: Any = pickle.loads(setup.code)
    if inspect.isclass(found):
        made: Any = found(**setup.kwargs)
        return made  # type: ignore[no-any-return]
    return functools.partial(found, **setup.kwargs) if setup.kwargs else found


def context_of(view: PolicyView, state: dict[str, Any]) -> AutoscalingContext:
    """Make what a policy is called with. Pure."""
    return AutoscalingContext(
        deployment_id=view.deployment,
        current_num_replicas=view.current_num_replicas,
        target_num_replicas=view.target_num_replicas,
        running_replicas=list(view.running_replicas),
        total_num_requests=view.total_num_requests,
        total_queued_requests=view.total_queued_requests,
        aggregated_metrics=view.aggregated_metrics,
        raw_metrics={
            name: {
                replica_id: [TimeStampedValue(at, value) for at, value in values]
                for replica_id, values in by_replica.items()
            }
            for name, by_replica in view.raw_metrics.items()
        },
        capacity_adjusted_min_replicas=view.capacity_adjusted_min_replicas,
        capacity_adjusted_max_replicas=view.capacity_adjusted_max_replicas,
        policy_state=dict(state),
        last_scale_up_time=view.last_scale_up_time,
        last_scale_down_time=view.last_scale_down_time,
        current_time=view.current_time,
        config=view.config,
    )


def checked(name: str, answer: object) -> tuple[float, dict[str, Any]]:
    """Take an answer for one deployment apart. Pure.

    Raises:
        PolicyError: it is none.
    """
    num, state = answer if isinstance(answer, tuple) and len(answer) == 2 else (answer, {})
    return _number(name, num), _state(name, state)


def checked_for_all(
    name: str, answer: object, contexts: Mapping[DeploymentID, AutoscalingContext]
) -> tuple[dict[DeploymentID, float], dict[DeploymentID, dict[str, Any]]]:
    """Take the answer of an application's policy apart. Pure.

    Raises:
        PolicyError: it is none, or names a deployment that does not exist.
    """
    nums, states = answer if isinstance(answer, tuple) and len(answer) == 2 else (answer, None)
    states = states or {}
    if not isinstance(nums, dict) or not isinstance(states, dict):
        raise PolicyError(
            f"{name} returned {answer!r}: a policy of an application returns a dict of numbers of "
            "replicas by DeploymentID, and a dict of states or None."
        )
    known = ", ".join(map(str, contexts))
    for key in (*nums, *states):
        if key not in contexts:
            raise PolicyError(f"{name} decided about {key!r}, and there are: {known}.")
    return (
        {where: _number(name, num) for where, num in nums.items()},
        {where: _state(name, state) for where, state in states.items()},
    )


def _number(name: str, num: object) -> float:
    is_number = isinstance(num, (int, float)) and not isinstance(num, bool)
    if not is_number or not math.isfinite(num) or num < 0:  # type: ignore[arg-type, operator]
        raise PolicyError(
            f"{name} returned {num!r}: a policy returns a number of replicas, >= 0, and a dict of "
            "what it wants to remember."
        )
    return float(num)  # type: ignore[arg-type]


def _state(name: str, state: object) -> dict[str, Any]:
    if state is None:
        return {}
    if not isinstance(state, dict):
        raise PolicyError(
            f"{name} returned {state!r} to remember: a policy returns a number of replicas and a "
            "dict."
        )
    return state


def main(context: ProcessContext) -> None:
    """Entry point of a policy's process."""
    log_of_system_process(context, "policy", "policy")
    uvloop.run(_serve(context))


async def _serve(context: ProcessContext) -> None:
    if context.cwd:
        os.chdir(context.cwd)
    runner = PolicyRunner(context.sys_path)
    servers = [await serve_control(context.sockets["wire"], runner.handlers)]
    if (for_others := context.sockets.get("wire_tcp")) is not None:
        # The controller may be on another node.
        servers.append(await serve_control(for_others, runner.handlers, context.token))
    terminated = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminated.set)
    await terminated.wait()
    for server in servers:
        server.close()
