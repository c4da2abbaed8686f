"""What a replica needs around it: a gang of others, an environment, actors of its deployment.

Part of the options of a deployment (`config.py`); apart, because who starts processes reads these
and nothing else.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec

from remora.errors import ConfigError
from remora.options.checks import require_number

#: How the bundles of a placement group may lie: on few nodes, or on many; strictly, or if possible.
STRATEGIES = ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD")
_GANG_STRATEGIES = ("PACK", "SPREAD")


class GangPlacementStrategy(StrEnum):
    """On as few nodes as possible, or on as many; the plain texts do as well."""

    PACK = "PACK"
    SPREAD = "SPREAD"


class GangRuntimeFailurePolicy(StrEnum):
    """Who is replaced when a replica of a gang dies; the plain texts do as well."""

    RESTART_GANG = "RESTART_GANG"
    RESTART_REPLICA = "RESTART_REPLICA"


class MachineOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the machine of an instance is said to have, instead of what is found."""

    #: Amounts by name: `CPU`, `GPU`, `memory` (bytes) and custom ones.
    resources: dict[str, float] = {}
    #: For label selectors.
    labels: dict[str, str] = {}

    def __bool__(self) -> bool:
        return bool(self.resources or self.labels)


#: Nothing is said: what is found counts.
AS_FOUND = MachineOptions()


def machine_options(
    num_cpus: float | None = None,
    num_gpus: int | None = None,
    memory: float | None = None,
    resources: object = None,
    labels: object = None,
) -> MachineOptions:
    """Make the struct of what a user passes to `start`; None: what is found.

    Raises:
        ConfigError: a value that cannot be right.
    """
    amounts = amounts_by_name("resources", resources)
    for key, name, amount in (
        ("num_cpus", "CPU", num_cpus),
        ("num_gpus", "GPU", num_gpus),
        ("memory", "memory", memory),
    ):
        if amount is not None:
            require_number(key, amount, low=0, whole=name == "GPU")
            amounts[name] = float(amount)
    return MachineOptions(resources=amounts, labels=texts_by_name("labels", labels))


def amounts_by_name(field: str, given: object) -> dict[str, float]:
    """Check custom resources.

    Raises:
        ConfigError: no dict of amounts, or a name that has an option of its own.
    """
    if given is None:
        return {}
    if not isinstance(given, dict) or not all(isinstance(name, str) for name in given):
        raise ConfigError(field, given, "must be a dict of amounts by name")
    for name, amount in given.items():
        if name in ("CPU", "GPU", "memory"):
            raise ConfigError(
                f"{field}[{name!r}]", amount, "use num_cpus, num_gpus or memory instead"
            )
        require_number(f"{field}[{name!r}]", amount, low=0)
    return {name: float(amount) for name, amount in given.items()}


def texts_by_name(field: str, given: object) -> dict[str, str]:
    """Check labels, selectors or environment variables.

    Raises:
        ConfigError: no dict of str to str.
    """
    if given is None:
        return {}
    if not isinstance(given, dict) or not all(
        isinstance(item, str) for pair in given.items() for item in pair
    ):
        raise ConfigError(field, given, "must be a dict of str to str")
    return dict(given)


class GangSchedulingConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Replicas that are started together or not at all, and restarted together."""

    #: Replicas in a gang, >= 1; `num_replicas` is a multiple of it.
    gang_size: int
    #: `PACK`: on as few nodes as possible; `SPREAD`: on as many.
    gang_placement_strategy: str = "PACK"
    #: `RESTART_GANG`: when one replica dies, the others of its gang are replaced with it.
    runtime_failure_policy: str = "RESTART_GANG"

    def __post_init__(self) -> None:
        field = "gang_scheduling_config"
        require_number(f"{field}.gang_size", self.gang_size, low=1, whole=True)
        if self.gang_placement_strategy not in _GANG_STRATEGIES:
            raise ConfigError(
                f"{field}.gang_placement_strategy",
                self.gang_placement_strategy,
                f"one of {', '.join(_GANG_STRATEGIES)}",
            )
        if self.runtime_failure_policy == "RESTART_REPLICA":
            raise NotImplementedError(
                f"{field}.runtime_failure_policy='RESTART_REPLICA' does not exist yet: a gang is "
                "restarted as a whole (RESTART_GANG)."
            )
        if self.runtime_failure_policy != "RESTART_GANG":
            raise ConfigError(
                f"{field}.runtime_failure_policy", self.runtime_failure_policy, "RESTART_GANG"
            )


class RuntimeEnv(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the process of a replica finds beside the packages and folders of the instance.

    Made from the dict `runtime_env` of `ray_actor_options` (`options/runtime_env.py`); its environment
    variables are `DeploymentConfig.env_vars`.
    """

    #: Folder or zip file whose content is the working directory; empty: that of the application.
    working_dir: str = ""
    #: Folders, `.py` files, zip or wheel files that can be imported.
    py_modules: tuple[str, ...] = ()
    #: Patterns of names and paths in these folders that are left out.
    excludes: tuple[str, ...] = ()
    #: Requirements to install, as a requirements file has them.
    packages: tuple[str, ...] = ()
    #: The file that has them; empty: it was read, or there is none.
    requirements_file: str = ""
    #: `pip` or `uv`; which one installs them.
    installer: str = "pip"
    #: Further arguments of its `install` command.
    install_options: tuple[str, ...] = ()
    #: Digest of the contents of `working_dir` and of each of `py_modules`, as they were when the
    #: application was deployed; empty: not looked at yet.
    digests: tuple[str, ...] = ()
    #: The `excludes` that each digest was taken with: folders of an application and of its
    #: deployment meet here, each with those that were given for it.
    excluded: tuple[tuple[str, ...], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.working_dir or self.py_modules or self.packages or self.requirements_file)


class DeploymentActorConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A named object in a process of its own that all replicas of a deployment share."""

    #: By which `get_deployment_actor` finds it.
    name: str
    #: A class, or `module:Class`.
    actor_class: Any
    #: A tuple or list.
    init_args: Any = ()
    init_kwargs: dict[str, Any] = {}
    #: As `ray_actor_options` of a deployment, and `max_concurrency`.
    actor_options: dict[str, Any] = {}

    def __post_init__(self) -> None:
        field = "deployment_actors"
        name: object = self.name  # whatever the caller really passed
        if not isinstance(name, str) or not name or "#" in name:
            raise ConfigError(f"{field}.name", name, "text that is not empty and has no '#'")
        if not isinstance(self.actor_class, (str, type)):
            raise ConfigError(
                f"{field}.actor_class", self.actor_class, "must be a class, or 'module:Class'"
            )
        for key, types in (
            ("init_args", (tuple, list)),
            ("init_kwargs", (dict,)),
            ("actor_options", (dict,)),
        ):
            if not isinstance(getattr(self, key), types):
                raise ConfigError(f"{field}.{key}", getattr(self, key), f"a {types[-1].__name__}")
