"""What a process takes, in the words of Ray: options of its actor."""

from __future__ import annotations

from typing import Any

from remora.engine.base import ProcessSpec
from remora.errors import EngineError
from remora.options.resources import RuntimeEnv


def actor_options(spec: ProcessSpec) -> dict[str, Any]:
    """Turn what is held for a process into options of its actor, without its place. Pure.

    Raises:
        EngineError: it needs folders or files of this node, which this engine does not carry yet.
    """
    options: dict[str, Any] = amounts(dict(spec.holds[0].resources)) if spec.holds else {}
    if runtime_env := environment(spec.runtime_env):
        options["runtime_env"] = runtime_env
    return options


def environment(env: RuntimeEnv) -> dict[str, Any]:
    """Turn what a process finds of its own into a `runtime_env` of Ray. Pure.

    Raises:
        EngineError: it needs folders or files of this node, which this engine does not carry yet.
    """
    if env.working_dir or env.py_modules:
        raise EngineError(
            "runtime_env with working_dir or py_modules does not work on the engine 'ray' yet: put "
            "the code on every node, or give it to the Ray job (`ray job submit --working-dir`)."
        )
    for package in env.packages:
        if "file:" in package:
            raise EngineError(
                f"runtime_env[{env.installer!r}] names {package.partition('#')[0]}, a file of the "
                "node where it was deployed, which the engine 'ray' does not carry to others yet: "
                "install it on every node, or name an index or a URL that has it."
            )
    if not env.packages:
        return {}
    wanted: dict[str, Any] = {"packages": list(env.packages)}
    # Without options Ray has some of its own, which an empty list would take away.
    if env.install_options:
        name = "pip_install_options" if env.installer == "pip" else "uv_pip_install_options"
        wanted[name] = list(env.install_options)
    return {env.installer: wanted}


def amounts(resources: dict[str, float]) -> dict[str, Any]:
    """Turn amounts by name into options of an actor. Pure."""
    options: dict[str, Any] = {
        "num_cpus": resources.pop("CPU", 0.0),
        "num_gpus": resources.pop("GPU", 0.0),
    }
    if memory := resources.pop("memory", 0.0):
        options["memory"] = int(memory)
    if resources:
        options["resources"] = resources
    return options
