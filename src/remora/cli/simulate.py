"""`remora simulate`: what autoscaling would do under a load."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from remora.cli.errors import CommandError, UsageError
from remora.config import nearest
from remora.errors import ConfigError, PolicyError

if TYPE_CHECKING:
    from remora.config import DeploymentConfig
    from remora.simulation import Service, Simulated

#: Name of the deployment where no application is named.
_ALONE = "model"


@dataclass(frozen=True)
class SimulationOptions:
    """What the command line says."""

    target: str | None
    arguments: tuple[str, ...]
    app_dir: Path
    loads: tuple[str, ...]
    services: tuple[str, ...]
    settings: tuple[str, ...]
    variation: float
    parallel: int | None
    start_s: float
    length_s: float | None
    seed: int
    plot: Path | None
    as_json: bool


def simulate_load(options: SimulationOptions) -> None:
    """Simulate, and print what came of it.

    Raises:
        CommandError: an option cannot be right, or there is nothing of that name.
    """
    from remora.simulation import simulate
    from remora.simulation.plot import svg
    from remora.simulation.result import drawn

    try:
        deployments = simulated(options)
        results = simulate(deployments, length_s=options.length_s, seed=options.seed)
    except (ConfigError, PolicyError) as error:
        raise CommandError(str(error)) from None
    if options.plot is not None:
        try:
            options.plot.write_text(svg(results), encoding="utf-8")
        except OSError as error:
            raise CommandError(f"{options.plot} cannot be written: {error}") from None
    if options.as_json:
        click.echo(json.dumps([result.summary() for result in results]))
    else:
        click.echo(drawn(results))
    for each in deployments:
        if each.config.autoscaling_config is None:
            count = each.config.num_replicas
            click.echo(
                f"{each.name} is not scaled by demand: it was simulated with its {count} replicas. "
                "Give it autoscaling_config to see it scale.",
                err=True,
            )


def simulated(options: SimulationOptions) -> list[Simulated]:
    """Make the deployments of a simulation.

    Raises:
        CommandError: an option names no deployment, or one has no load.
        ConfigError: a value that cannot be right.
    """
    from remora.simulation import Simulated, read_load

    configs = _configs(options)
    loads = _by_name("--load", options.loads, configs)
    services = _by_name("--service", options.services, configs)
    found = [
        Simulated(name, config, read_load(loads[name]), _service(options, services.get(name)))
        for name, config in configs.items()
        if name in loads
    ]
    if not found:
        raise UsageError(
            "Say what comes: --load 60@5,60@50,300@5 (seconds @ requests per second), or a file."
        )
    return found


def _configs(options: SimulationOptions) -> dict[str, DeploymentConfig]:
    """By name: those of an application, or one that the settings describe."""
    import msgspec

    from remora.config import DeploymentConfig
    from remora.options.autoscaling import autoscaling_config

    settings = _settings(options.settings)
    if options.target is None:
        scaling = autoscaling_config(settings, auto=True)
        return {_ALONE: DeploymentConfig(max_ongoing_requests=100, autoscaling_config=scaling)}
    from remora.build.graph import build
    from remora.cli.target import load, parse_arguments, parse_target

    application = load(
        parse_target(options.target), parse_arguments(options.arguments), options.app_dir
    )
    configs = {each.name: each.config for each in build(application).deployments}
    if settings:
        configs = {
            name: msgspec.structs.replace(
                config,
                autoscaling_config=msgspec.structs.replace(config.autoscaling_config, **settings),
            )
            for name, config in configs.items()
            if config.autoscaling_config is not None
        }
    return configs


def _settings(words: Sequence[str]) -> dict[str, Any]:
    from remora.config import AutoscalingConfig, check_keys

    settings: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise UsageError(f"--set {word!r}: write FIELD=VALUE, a field of autoscaling_config.")
        try:
            settings[key] = json.loads(value)
        except ValueError:
            settings[key] = value
    check_keys("--set", settings, AutoscalingConfig.__struct_fields__)
    return settings


def _by_name(
    option: str, words: Sequence[str], configs: Mapping[str, DeploymentConfig]
) -> dict[str, str]:
    """Read `DEPLOYMENT=VALUE`; a value alone is for the first deployment."""
    found: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            name, value = next(iter(configs)), word
        if name not in configs:
            raise UsageError(
                f"{option} {word!r}: there is no deployment {name!r} with autoscaling "
                f"({', '.join(configs)}).{nearest(name, configs)}"
            )
        found[name] = value
    return found


def _service(options: SimulationOptions, mean_s: str | None) -> Service:
    from remora.simulation import Service

    try:
        mean = 0.1 if mean_s is None else float(mean_s)
    except ValueError:
        raise UsageError(f"--service {mean_s!r}: a number of seconds is needed.") from None
    return Service(
        mean_s=mean,
        variation=options.variation,
        parallel=options.parallel,
        start_s=options.start_s,
    )
