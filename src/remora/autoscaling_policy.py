"""Policies that users may name, or call from their own.

A policy takes an `AutoscalingContext` and returns how many replicas there should be, and a dict
that it gets back as `policy_state` the next time. Delays, factors and bounds of the
`AutoscalingConfig` come afterwards, whoever decides.
"""

from __future__ import annotations

from typing import Any

from remora.autoscaling_context import AutoscalingContext
from remora.core.autoscale.formula import ceil
from remora.prometheus_queries import (
    PrometheusQueryMixin,
    PrometheusSample,
    PrometheusScalar,
    PrometheusVector,
)

__all__ = [
    "PrometheusQueryMixin",
    "PrometheusSample",
    "PrometheusScalar",
    "PrometheusVector",
    "default_autoscaling_policy",
    "replica_queue_length_autoscaling_policy",
]


def default_autoscaling_policy(
    ctx: AutoscalingContext, **_: Any
) -> tuple[int | float, dict[str, Any]]:
    """Return so many replicas that each has `target_ongoing_requests`. Pure."""
    if ctx.current_num_replicas == 0:
        if ctx.total_num_requests > 0:
            return max(ceil(ctx.config.up_factor), ctx.target_num_replicas), ctx.policy_state
        return ctx.target_num_replicas, ctx.policy_state
    return ctx.total_num_requests / ctx.config.target_ongoing_requests, ctx.policy_state


#: The name that it has in other places.
replica_queue_length_autoscaling_policy = default_autoscaling_policy
