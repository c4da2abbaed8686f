"""How many replicas one deployment of a simulation is to have, decided as the controller does.

Its demand is reported, the autoscaler's class decides, and a policy of the user's is asked.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from remora.config import AutoscalingConfig
from remora.control.policies import ANSWER_LIMIT_S
from remora.control.policy_process import checked, context_of, make_policy
from remora.control.scaled import Scaled
from remora.core import events as ev
from remora.core.autoscale.given import Asked
from remora.core.scale import bounds_for, count_of
from remora.core.state import Deployment
from remora.errors import PolicyError
from remora.observe.tracebacks import user_traceback
from remora.types import DeploymentID, ReplicaID, Seconds

if TYPE_CHECKING:
    from remora.simulation.served import Served
    from remora.simulation.world import World

#: The application that all deployments are in.
APP = "simulation"
#: How often replicas and routers report.
_REPORT_S: Seconds = 0.5
#: How often a policy of the user's is asked.
_ASK_S: Seconds = 1.0
#: Stands for all replicas in the reports: only the sum counts.
_ALL = ReplicaID("all")


class Scaling:
    """Scales one deployment."""

    def __init__(self, world: World, served: Served, config: AutoscalingConfig) -> None:
        self._world = world
        self._served = served
        self._scaled = Scaled(DeploymentID(served.given.name, APP), config, world.now)
        setup = served.given.config.scaling_policy
        self._path = setup.path
        self._policy = make_policy(setup) if setup.path else None
        self._policy_state: dict[str, object] = {}
        self._is_looking = False
        self._told = (-1.0, -1.0)

    def begin(self) -> None:
        """Report now and then, and ask the policy."""
        self._world.at(_REPORT_S, self._report_again)
        if self._policy is not None:
            self._world.at(0.0, self._ask_policy)

    def follow(self, deployment: Deployment, running: set[ReplicaID]) -> None:
        """Follow the state."""
        scaled = self._scaled
        scaled.bounds = bounds_for(deployment, deployment.target.config)
        scaled.target = count_of(deployment)
        if scaled.running.keys() != running:
            scaled.running = dict.fromkeys(running, "")
            self._look_soon()

    def _report_again(self) -> None:
        self._world.after(_REPORT_S, self._report_again)
        self.report()

    def report(self) -> None:
        """Report what is asked, as replicas and routers do, if something has changed."""
        scaled, now = self._scaled, self._world.now
        mean = self._served.take_work() / _REPORT_S
        told = (mean, float(len(self._served.queue)))
        if told == self._told:
            return
        self._told = told
        scaled.demand.expect([_ALL], now, scaled.keep_s)
        scaled.demand.report_running(_ALL, mean, now, scaled.keep_s)
        scaled.demand.report_queued("router", told[1], now, scaled.keep_s)
        self._decide()

    def _look_soon(self) -> None:
        """Decide after what happens now."""
        if not self._is_looking:
            self._is_looking = True
            self._world.after(0.0, self._look)

    def _look(self) -> None:
        self._is_looking = False
        self._decide()

    def _decide(self) -> None:
        """Let the autoscaler decide, and look again when it says."""
        scaled, now = self._scaled, self._world.now
        # What is silent here has nothing new.
        scaled.demand.report_running(_ALL, scaled.demand.running.value, now, scaled.keep_s)
        before = scaled.target
        decision = scaled.decide(now, -self._world.begin_s)
        if decision.target != before:
            record = decision.record
            self._served.result.decisions.append(record)
            name = self._served.given.name
            self._world.tell(ev.ScaleDecided(app_name=APP, deployment=name, record=record))
        at = decision.look_at
        if at is not None and math.isfinite(at):
            self._world.at(at - self._world.begin_s, self._look_if_due, at)

    def _look_if_due(self, at: Seconds) -> None:
        if self._scaled.decided_s is None or self._scaled.decided_s < at:
            self._decide()

    def _ask_policy(self) -> None:
        """Ask the policy of the user's."""
        scaled, policy = self._scaled, self._policy
        assert policy is not None
        name = f"The autoscaling policy {scaled.policy.path or self._path}"
        view = scaled.view(self._world.now, -self._world.begin_s)
        context = context_of(view, self._policy_state)
        try:
            answer = _in_time(name, lambda: policy(context))
        except PolicyError:
            raise
        except Exception as error:
            raise PolicyError(f"{name} failed.\n{user_traceback(error)}") from error
        if hasattr(answer, "__await__"):
            answer.close()
            raise PolicyError(f"{name} is a coroutine function, which cannot be simulated.")
        num, self._policy_state = checked(name, answer)
        scaled.asked = Asked(num, policy=self._path)
        self._world.after(_ASK_S, self._ask_policy)
        self._decide()


def _in_time(name: str, ask: Callable[[], Any]) -> Any:
    """Ask a policy, and wait no longer for it than an instance does.

    Raises:
        PolicyError: it did not answer in time. It goes on, and nobody looks at what it says.
        BaseException: what it raised.
    """
    answers: list[Any] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            answers.append(ask())
        except BaseException as error:  # noqa: BLE001 - border: user code, handed over to the caller
            errors.append(error)

    # Of the real clock: the policy is real code. A thread, because nothing else could be left.
    thread = threading.Thread(target=work, name="remora-policy", daemon=True)
    thread.start()
    thread.join(ANSWER_LIMIT_S)
    if errors:
        raise errors[0]
    if not answers:
        raise PolicyError(
            f"{name} did not answer within {ANSWER_LIMIT_S:g} s, the limit in an instance too: there "
            "its process would be ended, and the number of replicas would stay as it is. Let it do "
            "what takes long in a thread or task of its own."
        )
    return answers[0]
