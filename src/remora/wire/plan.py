"""What a config would change, as the controller tells it before anything is changed."""

from __future__ import annotations

import msgspec


class DeploymentPlan(msgspec.Struct, frozen=True, kw_only=True):
    """One deployment."""

    name: str
    #: `create`, `roll`, `reconfigure`, `scale`, `options` (read by no replica), `delete`; in this
    #: order. Empty: nothing changes.
    steps: tuple[str, ...] = ()
    #: Options that differ; `code` and `folders` stand for what is run and where it is found.
    changed: tuple[str, ...] = ()
    #: Replicas that there are, that there will be, and that there are at most in between. Those
    #: that finish their last requests are not counted.
    before: int = 0
    after: int = 0
    peak: int = 0
    #: Bytes of one replica, measured or asked for; None: not known yet.
    replica_bytes: int | None = None


class ApplicationPlan(msgspec.Struct, frozen=True, kw_only=True):
    """One application."""

    name: str
    #: `create`, `update`, `none`, `delete`, or `fail`.
    action: str
    route_before: str | None = None
    route_after: str | None = None
    #: Why it would fail.
    error: str = ""
    deployments: tuple[DeploymentPlan, ...] = ()


class Plan(msgspec.Struct, frozen=True):
    """All applications that the config names, and those that it would delete."""

    applications: tuple[ApplicationPlan, ...] = ()
