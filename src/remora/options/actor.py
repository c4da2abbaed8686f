"""`ray_actor_options` and what else a deployment says of its place, as fields of its config.

Rules: pure functions; every value is taken over or refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from remora.errors import ConfigError
from remora.options.checks import check_keys, require_number, struct_of
from remora.options.resources import (
    STRATEGIES,
    GangSchedulingConfig,
    amounts_by_name,
    texts_by_name,
)
from remora.options.runtime_env import read_runtime_env

#: The label of nodes that `accelerator_type` asks for, as on Ray.
ACCELERATOR_LABEL = "ray.io/accelerator-type"

#: Options that `placement_fields` reads.
PLACEMENT = frozenset(
    {
        "gang_scheduling_config",
        "max_replicas_per_node",
        "placement_group_bundle_label_selector",
        "placement_group_bundles",
        "placement_group_strategy",
    }
)
_ACTOR_KEYS = (
    "accelerator_type",
    "fallback_strategy",
    "label_selector",
    "memory",
    "num_cpus",
    "num_gpus",
    "resources",
    "runtime_env",
)


def actor_fields(given: Any, field: str = "ray_actor_options") -> dict[str, Any]:
    """Turn `ray_actor_options` into fields of `DeploymentConfig`.

    Raises:
        TypeError: no dict.
        ConfigError: a key or a value that cannot be right.
    """
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise TypeError(f"{field} must be a dict, not {type(given).__name__}")
    check_keys(field, given, _ACTOR_KEYS)
    fields: dict[str, Any] = {"resources": _resources(field, given)}
    selector = texts_by_name(f"{field}['label_selector']", given.get("label_selector"))
    if (kind := given.get("accelerator_type")) is not None:
        if not isinstance(kind, str) or not kind:
            raise ConfigError(f"{field}['accelerator_type']", kind, "a name such as 'A100'")
        selector[ACCELERATOR_LABEL] = kind
    fields["label_selector"] = selector
    fields["fallback_selectors"] = _fallbacks(field, given.get("fallback_strategy"))
    return fields | read_runtime_env(f"{field}['runtime_env']", given.get("runtime_env"))


def _resources(field: str, given: Mapping[str, Any]) -> dict[str, float]:
    resources: dict[str, float] = {}
    for key, name in (("num_cpus", "CPU"), ("num_gpus", "GPU"), ("memory", "memory")):
        amount = given.get(key)
        if amount is not None:
            require_number(f"{field}[{key!r}]", amount, low=0)
            resources[name] = float(amount)
    gpus = resources.get("GPU", 0.0)
    if gpus > 1 and gpus != int(gpus):
        raise ConfigError(f"{field}['num_gpus']", gpus, "a share of one GPU, or a whole number")
    return resources | amounts_by_name(f"{field}['resources']", given.get("resources"))


def _fallbacks(field: str, given: Any) -> tuple[dict[str, str], ...]:
    if given is None:
        return ()
    name = f"{field}['fallback_strategy']"
    if not isinstance(given, list) or not all(isinstance(each, dict) for each in given):
        raise ConfigError(name, given, "must be a list of dicts with a label_selector")
    for each in given:
        check_keys(name, each, ("label_selector",))
    return tuple(texts_by_name(name, each.get("label_selector")) for each in given)


def placement_fields(given: Mapping[str, Any]) -> dict[str, Any]:
    """Turn the options about placement groups, nodes and gangs into fields.

    Raises:
        TypeError: `max_replicas_per_node` is no whole number.
        ConfigError: a value that cannot be right.
    """
    fields: dict[str, Any] = {}
    if (bundles := given.get("placement_group_bundles")) is not None:
        fields["placement_group_bundles"] = _bundles(bundles)
    if (strategy := given.get("placement_group_strategy")) is not None:
        if strategy not in STRATEGIES:
            raise ConfigError(
                "placement_group_strategy", strategy, f"one of {', '.join(STRATEGIES)}"
            )
        fields["placement_group_strategy"] = strategy
    if (selectors := given.get("placement_group_bundle_label_selector")) is not None:
        fields["placement_group_bundle_label_selector"] = _bundle_selectors(
            selectors, fields.get("placement_group_bundles", ())
        )
    if (limit := given.get("max_replicas_per_node")) is not None:
        if isinstance(limit, bool) or not isinstance(limit, int):
            name = type(limit).__name__
            raise TypeError(f"max_replicas_per_node must be an int, not {name} ({limit!r})")
        require_number("max_replicas_per_node", limit, low=1, high=100, whole=True)
        fields["max_replicas_per_node"] = limit
    if (gang := given.get("gang_scheduling_config")) is not None:
        field = "gang_scheduling_config"
        fields[field] = struct_of(GangSchedulingConfig, field, gang, error=ConfigError)
    return fields


def _bundles(given: Any) -> tuple[dict[str, float], ...]:
    name = "placement_group_bundles"
    if not isinstance(given, list) or not given or not all(isinstance(b, dict) for b in given):
        raise ConfigError(name, given, "must be a list of dicts, not empty")
    for bundle in given:
        for resource, amount in bundle.items():
            require_number(f"{name}[{resource!r}]", amount, low=0)
        if not any(bundle.values()):
            raise ConfigError(name, given, "a bundle must reserve something")
    return tuple({str(key): float(value) for key, value in bundle.items()} for bundle in given)


def _bundle_selectors(given: Any, bundles: tuple[Any, ...]) -> tuple[dict[str, str], ...]:
    name = "placement_group_bundle_label_selector"
    if not isinstance(given, list) or len(given) not in (1, len(bundles)):
        raise ConfigError(name, given, "must be a list of one entry, or one for each bundle")
    return tuple(texts_by_name(name, each) for each in given)


def check_placement(given: Mapping[str, Any], fields: Mapping[str, Any]) -> None:
    """Refuse what contradicts each other.

    Args:
        given: the user's options.
        fields: what became of them.

    Raises:
        ConfigError: names the option that has to go.
    """
    bundles = fields.get("placement_group_bundles")
    gang = fields.get("gang_scheduling_config")
    for keyword in ("placement_group_strategy", "placement_group_bundle_label_selector"):
        if given.get(keyword) is not None and not bundles:
            raise ConfigError(keyword, given[keyword], "needs placement_group_bundles")
    if given.get("max_replicas_per_node") is not None and (bundles or gang):
        raise ConfigError(
            "max_replicas_per_node",
            given["max_replicas_per_node"],
            "cannot be combined with placement_group_bundles or gang_scheduling_config",
        )
    if bundles:
        _check_first_bundle(bundles[0], fields.get("resources", {}))
    if gang is None:
        return
    if given.get("placement_group_strategy") is not None:
        raise ConfigError(
            "placement_group_strategy",
            given["placement_group_strategy"],
            "cannot be combined with gang_scheduling_config, which says how a gang lies",
        )
    count = fields.get("num_replicas", 1)
    if given.get("autoscaling_config") is None and count % gang.gang_size:
        raise ConfigError(
            "num_replicas", count, f"a multiple of gang_size={gang.gang_size} is needed"
        )


def _check_first_bundle(bundle: Mapping[str, float], resources: Mapping[str, float]) -> None:
    for name, amount in resources.items():
        if amount > bundle.get(name, 0.0):
            raise ConfigError(
                "placement_group_bundles",
                dict(bundle),
                f"the replica runs in the first bundle, which must hold its {name}={amount:g}",
            )


def preload_names(given: Any) -> tuple[str, ...]:
    """Turn what is to be loaded once for all replicas into `module` and `module:function`.

    Raises:
        ConfigError: another process could not find it under such a name.
    """
    if not isinstance(given, (list, tuple)):
        raise ConfigError("preload", given, "must be a list of modules, functions, or their names")
    return tuple(_preload_name(each) for each in given)


def _preload_name(given: Any) -> str:
    name = given
    if isinstance(given, ModuleType):
        name = given.__name__
    elif callable(given):
        name = f"{given.__module__}:{given.__qualname__}"
    if not isinstance(name, str) or not all(
        word.isidentifier() for word in name.replace(":", ".", 1).split(".")
    ):
        raise ConfigError(
            "preload", given, "must be a module, a function of a module, or the name of one of them"
        )
    if name.partition(":")[0] == "__main__":
        raise ConfigError(
            "preload", name, "no other process can import it from a script: put it into a module"
        )
    return name
