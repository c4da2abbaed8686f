"""A config on its way: what it declares, and what became of its import paths.

All its applications change at once, when the last of them has been imported: so routes can be
exchanged between two of them, and a config that is replaced meanwhile has changed nothing.

Rules: pure data.
"""

from __future__ import annotations

import msgspec

from remora.config import DeploymentConfig, ScalingPolicySetup
from remora.options.resources import RuntimeEnv
from remora.wire.control import DeclaredApplication, Surroundings


class DeploymentRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One deployment of a deploy request; its code lies in the store."""

    name: str
    code_key: str
    code_version: str
    config: DeploymentConfig
    #: Deployments of the application that it was bound with.
    calls: tuple[str, ...] = ()


class ApplicationRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One application of a deploy request."""

    name: str
    route_prefix: str | None
    ingress: str
    deployments: tuple[DeploymentRequest, ...]
    surroundings: Surroundings = Surroundings()
    #: Numbers of replicas come from outside.
    external_scaler: bool = False
    #: Decides for all deployments; without a path each has its own policy.
    scaling_policy: ScalingPolicySetup = ScalingPolicySetup()

    def environments(self) -> set[RuntimeEnv]:
        """Environments of its replicas. Pure."""
        return {each.config.runtime_env for each in self.deployments}


class Submission(msgspec.Struct, frozen=True, kw_only=True):
    """A config whose applications are being imported."""

    release: int
    applications: tuple[DeclaredApplication, ...]
    built: dict[str, ApplicationRequest] = {}
    #: Why an import path leads to no application, by name.
    failed: dict[str, str] = {}

    def pending(self) -> tuple[DeclaredApplication, ...]:
        """Applications that are being imported still. Pure."""
        return tuple(
            app
            for app in self.applications
            if app.name not in self.built and app.name not in self.failed
        )

    def begun_again(self) -> Submission:
        """The same with nothing imported yet: what a successor of the controller begins with. Pure."""
        return msgspec.structs.replace(self, built={}, failed={})

    def without(self, names: frozenset[str]) -> Submission:
        """The same without applications that somebody has deployed or deleted meanwhile. Pure."""
        return msgspec.structs.replace(
            self,
            applications=tuple(app for app in self.applications if app.name not in names),
            built={name: app for name, app in self.built.items() if name not in names},
            failed={name: why for name, why in self.failed.items() if name not in names},
        )

    def code_keys(self) -> set[str]:
        """Keys of the code of everything that is imported already. Pure."""
        return {each.code_key for app in self.built.values() for each in app.deployments}

    def environments(self) -> set[RuntimeEnv]:
        """Environments of what imports its applications, and of what is imported already. Pure."""
        built = {env for app in self.built.values() for env in app.environments()}
        return built | {app.runtime_env for app in self.applications}
