"""The one instance that this process works with, and how plain code waits for it.

A process uses one instance at a time. It joins the one that runs in its state folder, or launches
one that ends with the process.

Rules: the only module-level state of the public API is `_current`, held here.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import sys
import threading
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any, TypeVar
from urllib.parse import urlsplit

from remora.config import HTTPOptions, engine_options
from remora.engine.claim import other_version
from remora.engine.launch import AS_USUAL, LaunchSetup, wait_while_ending
from remora.errors import ConfigError, InstanceError, InternalError, RemoraError
from remora.handle import forget_routers
from remora.home import Home
from remora.instance import Instance
from remora.router.process import expect_news, forget_instance, instance_home, use_instance
from remora.transport.membership import join_by_folder
from remora.wire.grpc import GrpcSetup, digest

_T = TypeVar("_T")

_log = logging.getLogger("remora")

_current: Instance | None = None
#: What names the cluster of `_current` to Ray in the environment of this process.
_named: dict[str, str] = {}
_lock = threading.Lock()


def current_instance() -> Instance | None:
    """The instance that this process uses: its own, or the one of its state folder.

    None: none runs.
    """
    global _current
    with _lock:
        if _current is not None and _current.is_alive():
            return _current
        if _current is not None:
            _leave()
        # A replica or proxy is inside an instance, whatever its environment says.
        home = instance_home() or Home.locate()
        _current = Instance.find(home)
        if _current is None and "ray" in sys.modules:
            _current = _find_in_cluster()
        if _current is not None:
            _use(_current.home)
            _name_cluster(_current)
            _say_version(_current)
        return _current


def _say_version(found: Instance) -> None:
    if found.owner is not None and (said := other_version(found.owner)):
        _log.warning("%s", said)


def _find_in_cluster() -> Instance | None:
    """The instance of the Ray cluster that this program is in."""
    from remora.engine.ray.near import find_home

    home = find_home()
    return None if home is None else Instance.find(home)


def require_instance() -> Instance:
    """The instance that this process uses.

    Raises:
        InstanceError: none runs.
    """
    instance = current_instance()
    if instance is None:
        raise InstanceError(
            f"No instance runs in {Home.locate().root}: call remora.run(app) or remora.start(), or "
            "use the command `remora start`."
        )
    return instance


def begin(setup: LaunchSetup = AS_USUAL, home: Home | None = None) -> Instance:
    """Find the instance of this process, or launch one bound to it without waiting for it.

    Args:
        setup: how it is to be.
        home: its state folder; None: the usual one.

    Raises:
        ConfigError: one runs, with other options.
        InstanceError: no process can be started.
    """
    global _current
    # One that ends takes nothing new; what follows it is another instance.
    wait_while_ending(home or instance_home() or Home.locate())
    found = current_instance()
    if found is not None and found.is_local_testing:
        raise InstanceError(
            "This process has applications in local testing mode; call remora.shutdown() before "
            "you run others in processes of their own"
        )
    if found is not None and (home is None or found.home == home):
        _refuse_changes(found, setup)
        return found
    with _lock:
        chosen = home or Home.locate()
        whole = replace(setup, engine=setup.engine or engine_options())
        _current = Instance.launch(chosen, whole, bound=True)
        _use(chosen)
        return _current


def _refuse_changes(found: Instance, wanted: LaunchSetup) -> None:
    """Refuse what is asked of an instance that runs, and can only be had when one starts.

    Raises:
        ConfigError: something is.
    """
    runs = f"the instance in {found.home.root} runs already"
    change = f"{runs}; shut it down to change this"
    if wanted.http is not None:
        refuse_other_options(found, wanted.http)
    if wanted.grpc is not None:
        refuse_other_grpc(found, wanted.grpc)
    if wanted.logging is not None:
        raise ConfigError(
            "logging_config",
            "…",
            f"{runs}; shut it down to change how it logs, or give the config to an application",
        )
    if wanted.tracing is not None:
        raise ConfigError("tracing_config", "…", f"{runs}; shut it down to change what it traces")
    if wanted.machine and wanted.machine != found.machine:
        raise ConfigError(
            "num_cpus, num_gpus, memory, resources, labels",
            {**wanted.machine.resources, **wanted.machine.labels},
            change,
        )
    if wanted.engine is not None and wanted.engine.engine != found.engine:
        raise ConfigError("engine", wanted.engine.engine, f"is {found.engine!r} and {change}")
    if wanted.admin is not None:
        raise ConfigError("admin_options", wanted.admin, change)


def begin_local_testing() -> Instance:
    """Use an instance inside this process, for tests; the same one until it is shut down.

    Raises:
        InstanceError: this process has launched another instance, which still runs.
    """
    global _current
    from remora.local_testing import LocalTestingInstance

    with _lock:
        if _current is not None and _current.is_alive():
            if isinstance(_current, LocalTestingInstance):
                return _current
            if not _current.joined:
                raise InstanceError(
                    f"This process runs the instance in {_current.home.root}; call "
                    "remora.shutdown() before an application is run in local testing mode"
                )
        _leave()
        _current = LocalTestingInstance()
        _use(_current.home)
        return _current


def refuse_other_options(running: Instance, wanted: HTTPOptions) -> None:
    """Refuse options that differ from those of a running instance, naming the first.

    Raises:
        ConfigError: it cannot be changed while the instance runs.
    """
    advice = f"the instance in {running.home.root} runs already; shut it down to change this"
    if running.http is not None:
        for name in HTTPOptions.__struct_fields__:
            has, wants = getattr(running.http, name), getattr(wanted, name)
            if has != wants:
                raise ConfigError(f"http_options[{name!r}]", wants, f"is {has!r} and {advice}")
        return
    url = urlsplit(running.wait_ready())
    defaults = HTTPOptions()
    for name in HTTPOptions.__struct_fields__:
        wants = getattr(wanted, name)
        if wants == getattr(defaults, name):
            continue  # whether it was asked for cannot be told
        known = {"host": url.hostname, "port": url.port}
        if name not in known or known[name] != wants:
            has = f"is {known[name]!r} and " if name in known else ""
            raise ConfigError(f"http_options[{name!r}]", wants, f"{has}{advice}")


def refuse_other_grpc(running: Instance, wanted: GrpcSetup) -> None:
    """Refuse a setup for gRPC that is not that of a running instance.

    Raises:
        ConfigError: it cannot be changed while the instance runs.
    """
    address = running.grpc_address
    advice = f"the instance in {running.home.root} runs already; shut it down to change this"
    if not address:
        raise ConfigError("grpc_options", "…", f"there is no gRPC, and {advice}")
    port = int(address.rpartition(":")[2])
    if wanted.port not in (0, port):
        raise ConfigError("grpc_options['port']", wanted.port, f"is {port} and {advice}")
    if running.grpc_digest != digest(wanted):
        raise ConfigError("grpc_options", "…", f"they are others, and {advice}")


def end_current() -> bool:
    """End the instance that this process uses; False: there is none."""
    instance = current_instance()
    if instance is None:
        return False
    wait_for(instance, Instance.shut_down)
    with _lock:
        _leave()
    return True


def wait_ready(instance: Instance) -> str:
    """Wait until an instance is up; one that cannot come up is no longer this process's.

    Raises:
        InstanceError: it cannot come up; says why and what to do.
    """
    try:
        url = instance.wait_ready()
        with _lock:
            if _current is instance:
                _name_cluster(instance)
        # One that was launched has said only now which node this is.
        join_by_folder(instance.home)
        return url
    except InstanceError:
        with _lock:
            if _current is instance:
                _leave()
        raise


def note_change() -> None:
    """This process has changed what runs: calls from here on wait until that is known here."""
    forget_routers()
    expect_news()


def wait_for(instance: Instance, work: Callable[[Instance], Coroutine[Any, Any, _T]]) -> _T:
    """Do something with an instance, from any thread, with or without a running loop.

    Raises:
        InstanceError: it cannot come up, or is gone.
        Exception: what `work` raises.
    """
    # Here and not in a loop: this wait can be interrupted.
    wait_ready(instance)
    return run_coroutine(work(instance))


def run_coroutine(work: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine to its end from plain code, also where a loop runs in this thread.

    In a running loop (a notebook) another thread does it, and this one blocks until it is done.
    """
    if not _runs_loop():
        try:
            return asyncio.run(work)
        except InternalError:
            raise
        except RemoraError as error:
            # Where we found it out helps nobody: what failed is in the message.
            raise error.with_traceback(None)  # noqa: B904 - it is the same error
    result: list[_T] = []
    errors: list[BaseException] = []

    def work_in_thread() -> None:
        try:
            result.append(asyncio.run(work))
        except BaseException as error:  # noqa: BLE001 - border: handed over to the caller
            errors.append(error)

    thread = threading.Thread(target=work_in_thread, name="remora-api", daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return result[0]


def _runs_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _use(home: Home) -> None:
    if instance_home() != home:
        use_instance(home, f"script {os.getpid()}")


def _name_cluster(instance: Instance) -> None:
    """Have `ray` mean the cluster of the instance. Called with the lock held."""
    if instance.engine != "ray" or _named or (owner := instance.owner) is None:
        return
    from remora.engine.ray import default_cluster

    _named.update(default_cluster.begin(owner.cluster, shows_token=owner.shows_token))


def _unname_cluster() -> None:
    # Also where nothing was set, because the user has named a cluster.
    if (default_cluster := sys.modules.get("remora.engine.ray.default_cluster")) is not None:
        default_cluster.end(_named)
        _named.clear()


def _leave() -> None:
    """Forget the instance and all connections to it. Called with the lock held."""
    global _current
    if _current is not None:
        _current.release()
    _current = None
    _unname_cluster()
    forget_instance()
    forget_routers()


@atexit.register
def _at_exit() -> None:
    # Quickly: the script that it belongs to is over. One that was there before stays.
    if _current is not None and not _current.joined:
        _current.force_end()
