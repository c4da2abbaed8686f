"""The metrics of one process: its own for the controller's asking, everybody's for a reader.

Nothing is sent until somebody wants to read: a reader asks the controller, and that asks
everybody (`control/metrics.py`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from remora.errors import ConnectionLostError, RemoraError
from remora.observe.metrics import gauge, merged, render
from remora.transport.channel import Channel
from remora.transport.control import call_control, stream_control
from remora.types import Seconds
from remora.wire.control import Subscription
from remora.wire.metrics import Family, MetricsAnswer, MetricsCall, MetricsReport, MetricsRequest

_log = logging.getLogger("remora.router")
#: A controller that is there answers when its slowest replica has, or after a second.
_LIMIT_S: Seconds = 3.0


class ProcessMetrics:
    """What this process counts, and the way to what others do.

    Attributes:
        sources: whatever counts in this process.
    """

    def __init__(self, subscriber: str, pid: int) -> None:
        """Make an object that knows of nothing that counts.

        Args:
            subscriber: who this is, for the controller.
            pid: of this process.
        """
        self.sources: list[Callable[[], list[Family]]] = []
        self._subscription = Subscription(subscriber, pid)
        self._channel: Channel | None = None

    def own(self) -> list[Family]:
        """What is counted here."""
        return merged(family for source in self.sources for family in source())

    async def follow(self, channel: Channel) -> None:
        """Answer the controller until the connection ends."""
        self._channel = channel
        try:
            calls = stream_control(channel, "follow_metrics", self._subscription, MetricsCall)
            async for call in calls:
                answer = MetricsAnswer(call.number, tuple(self.own()))
                await call_control(channel, "answer_metrics", answer)
        except ConnectionLostError:
            pass
        except RemoraError as error:
            _log.warning("The metrics of this process are not read: %s", error)
        finally:
            if self._channel is channel:
                self._channel = None

    async def read(self) -> str:
        """Everything that anybody of this instance counts, in the text format of Prometheus.

        While no controller is there: what is counted here. `serve_metrics_complete` tells which.
        """
        others: tuple[Family, ...] = ()
        complete = 0
        if self._channel is not None:
            request = MetricsRequest(self._subscription.subscriber)
            try:
                answer = await call_control(
                    self._channel, "metrics", request, MetricsReport, _LIMIT_S
                )
                others, complete = answer.families, 1
            except (RemoraError, TimeoutError) as error:
                _log.info("Only the metrics of this process can be read: %s", error)
        here = gauge("serve_metrics_complete", (), {(): complete})
        return render(merged((*self.own(), *others, here)))
