"""What the engine uses of Ray, in few words: a store, nodes, actors by name.

Rules: with `sign_in` the one module that knows Ray's private interfaces. Everything here blocks for
the time of one round trip to Ray's head; code on an event loop calls it in a thread.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import ray
from ray._private.state import state as _state
from ray.exceptions import AuthenticationError
from ray.experimental import internal_kv

from remora.engine.ray.own_ray import OWN_RAY
from remora.engine.ray.sign_in import refused, sign_in
from remora.errors import EngineError, InstanceError
from remora.options.resources import AS_FOUND, MachineOptions

T = TypeVar("T")

#: Ray actors and stored values of the instance of a cluster. There is one.
NAMESPACE = "remora"
#: Resources that Ray counts for itself.
_INTERNAL = ("node:", "object_store_memory")
#: What only the node of Ray's head offers.
HEAD_RESOURCE = "node:__internal_head__"


@dataclass(frozen=True)
class RayNode:
    """A node that lives.

    Attributes:
        host: its IP address.
        resources: what it offers, by Remora's names.
        labels: of Ray, and of its user.
        is_head: Ray's head.
        session: folder of this Ray session on it.
        draining: Ray takes it away soon.
    """

    node_id: str
    host: str
    resources: Mapping[str, float]
    labels: Mapping[str, str]
    is_head: bool
    session: str
    draining: bool


@dataclass(frozen=True)
class RayActor:
    """An actor of the instance as Ray's table has it.

    Attributes:
        pid: of its process; 0: it has none yet.
        node_id: where it runs; empty: nowhere yet.
    """

    name: str
    pid: int
    restarts: int
    node_id: str


def connect(address: str, machine: MachineOptions = AS_FOUND, *, shows: bool = False) -> bool:
    """Join a Ray cluster, or start one that ends with this process.

    Returns True when it has started one.

    Args:
        address: of a cluster; `auto`: the one of this machine; `local`: a new one; empty: the one
            of this machine if there is one, else a new one.
        machine: what a new one is said to have.
        shows: print here what processes that this one starts print anywhere in the cluster.

    Raises:
        InstanceError: nobody answers there, or it runs another version of Ray or Python.
    """
    sign_in(address)
    # Ray tells people at length where its dashboard is; here they read what Remora tells them.
    options: dict[str, Any] = {
        "namespace": NAMESPACE,
        "logging_level": logging.ERROR,
        "log_to_driver": shows,
    }
    new = {"include_dashboard": False, **_sizes(machine)}
    try:
        if address == "local":
            _start(options | new)
        elif address:
            ray.init(address, **options)
        else:
            try:
                ray.init("auto", **options)
            except ConnectionError as error:
                if _is_refused(error):
                    raise
                address = "local"
                _start(options | new)
    # Border: Ray says with a plain Exception that it takes too long, for example.
    except Exception as error:
        where = f"at {address}" if address else "on this machine"
        if _is_refused(error):
            raise refused(where, "this program showed none, or another one") from error
        if address == "local":
            raise InstanceError(
                f"A new Ray does not come up on this machine: {_first_line(error)}. Its logs are in "
                "/tmp/ray/session_latest/logs (RAY_TMPDIR names another folder). Is the machine very "
                "busy, or short of memory?"
            ) from error
        raise InstanceError(
            f"No Ray cluster {where} can be joined or started: {_first_line(error)}. "
            "`ray status` shows whether one runs; `ray start --head` starts one, and "
            "`--address local` one that belongs to this instance alone."
        ) from error
    if machine and address != "local":
        raise InstanceError(
            "The nodes of a Ray cluster say what they have when they are started (`ray start "
            "--num-cpus … --resources … --labels …`): leave the options for it out here, or start a "
            "new cluster with `--address local`."
        )
    return address == "local"


def _start(options: Mapping[str, Any]) -> None:
    for name, value in OWN_RAY.items():
        # Its processes inherit it. What somebody has set stays.
        os.environ.setdefault(name, value)
    ray.init("local", **options)


def _is_refused(error: BaseException) -> bool:
    """There is a cluster, and it wants another token than it was shown."""
    return isinstance(error, AuthenticationError) or isinstance(
        error.__cause__, AuthenticationError
    )


def _sizes(machine: MachineOptions) -> dict[str, Any]:
    """Turn what a machine is said to have into options of `ray.init`. Pure."""
    custom = dict(machine.resources)
    sizes: dict[str, Any] = {
        option: custom.pop(name)
        for name, option in (("CPU", "num_cpus"), ("GPU", "num_gpus"), ("memory", "_memory"))
        if name in custom
    }
    if "num_gpus" in sizes:
        sizes["num_gpus"] = int(sizes["num_gpus"])
    if custom:
        sizes["resources"] = custom
    if machine.labels:
        sizes["labels"] = dict(machine.labels)
    return sizes


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0].rstrip(".")


def set_title(title: str) -> None:
    """Show `title` in `ps`, in a worker of Ray, which has taken that over."""
    ray._raylet.setproctitle(title)


def this_node() -> str:
    """Id of the node that this process runs on."""
    return str(ray.get_runtime_context().get_node_id())


def here() -> RayNode:
    """The node that this process runs on.

    Raises:
        EngineError: Ray's head does not answer, or takes this node for gone.
    """
    node_id = this_node()
    found = next((node for node in nodes() if node.node_id == node_id), None)
    if found is None:
        raise EngineError(
            f"Ray's head does not count this node ({node_id[:12]}) among those that live. Does "
            "`ray status` show it?"
        )
    return found


def is_started_again() -> bool:
    """This process is an actor, and not the first one that Ray has started of it."""
    with warnings.catch_warnings():
        # Ray asks itself in a way that it warns of, on the terminal of whoever started it.
        warnings.simplefilter("ignore", DeprecationWarning)
        return bool(ray.get_runtime_context().was_current_actor_reconstructed)


def address() -> str:
    """Address of the head of the cluster that this process is in."""
    return str(ray.get_runtime_context().gcs_address)


def this_job() -> str:
    """Id of the program that this process belongs to."""
    return str(ray.get_runtime_context().get_job_id())


def nodes() -> list[RayNode]:
    """Every node that lives.

    Raises:
        EngineError: Ray's head does not answer.
    """
    draining = asked("list the nodes that drain", _state.get_draining_nodes)
    return [
        RayNode(
            node_id=node["NodeID"],
            host=node["NodeManagerAddress"],
            resources={
                name: float(amount)
                for name, amount in node["Resources"].items()
                if not name.startswith(_INTERNAL)
            },
            labels=node.get("Labels") or {},
            is_head=HEAD_RESOURCE in node["Resources"],
            session=node["RayletSocketName"].rpartition("/sockets/")[0],
            draining=node["NodeID"] in draining,
        )
        for node in asked("list the nodes", ray.nodes)
        if node["Alive"]
    ]


def is_over(job: str) -> bool:
    """A program has ended; one that Ray has forgotten as well."""
    jobs = _state.job_table()
    return all(each["IsDead"] for each in jobs if each["JobID"] == job)


class Cluster:
    """What an instance keeps in Ray: values and actors, in a namespace of its own."""

    def __init__(self, namespace: str = NAMESPACE) -> None:
        self.namespace = namespace
        self._space = namespace.encode()

    # ------------------------------------------------------------------------------- values

    def get(self, key: str) -> bytes | None:
        """Read a value; None: no such key.

        Raises:
            EngineError: Ray's head does not answer.
        """
        found: bytes | None = self._ask("read", key, internal_kv._internal_kv_get)
        return found

    def put(self, key: str, value: bytes) -> None:
        """Write a value.

        Raises:
            EngineError: Ray's head does not answer.
        """
        self._ask("write", key, internal_kv._internal_kv_put, value)

    def add(self, key: str, value: bytes) -> None:
        """Write a value, unless the key has one.

        Whether it was written is seen by reading it: Ray's client tries again by itself where an
        answer was lost, and says of the second try that there is one already.

        Raises:
            EngineError: Ray's head does not answer.
        """
        self._ask("add", key, internal_kv._internal_kv_put, value, False)

    def delete(self, key: str) -> None:
        """Forget a key.

        Raises:
            EngineError: Ray's head does not answer.
        """
        self._ask("delete", key, internal_kv._internal_kv_del)

    def keys(self, prefix: str) -> list[str]:
        """Keys that begin with `prefix`, sorted.

        Raises:
            EngineError: Ray's head does not answer.
        """
        found = self._ask("list", prefix, internal_kv._internal_kv_list)
        return sorted(key.decode() for key in found)

    def _ask(self, verb: str, key: str, call: Any, *args: Any) -> Any:
        return asked(f"{verb} {key!r}", lambda: call(key.encode(), *args, namespace=self._space))

    # ------------------------------------------------------------------------------- actors

    def names(self) -> list[str]:
        """Names of the actors that live or come up.

        Raises:
            EngineError: Ray's head does not answer.
        """
        found = asked("list actors", lambda: ray.util.list_named_actors(all_namespaces=True))
        return [each["name"] for each in found if each["namespace"] == self.namespace]

    def actors(self) -> dict[str, RayActor]:
        """The actors that live or come up, by name."""
        names = set(self.names())
        return {
            each["Name"]: RayActor(
                each["Name"],
                int(each["Pid"]),
                int(each["NumRestarts"]),
                str(each["Address"]["NodeID"]),
            )
            for each in _state.actor_table(None).values()
            if each["Name"] in names and each["State"] != "DEAD"
        }

    def actor(self, name: str) -> Any:
        """The handle of an actor; None: there is none of that name.

        Raises:
            EngineError: Ray's head does not answer.
        """
        return asked(f"find actor {name!r}", lambda: self._find(name))

    def _find(self, name: str) -> Any:
        try:
            return ray.get_actor(name, namespace=self.namespace)
        except ValueError:
            return None

    def start_again(self, name: str) -> None:
        """Have Ray kill the process of an actor and start it again; an unknown one is no error.

        Raises:
            EngineError: Ray's head does not answer.
        """
        if (actor := self.actor(name)) is not None:
            asked(f"start actor {name!r} again", lambda: ray.kill(actor, no_restart=False))

    def kill(self, name: str) -> None:
        """End an actor at once and for good; an unknown one is no error.

        Raises:
            EngineError: Ray's head does not answer.
        """
        if (actor := self.actor(name)) is not None:
            asked(f"kill actor {name!r}", lambda: ray.kill(actor, no_restart=True))


def asked(what: str, call: Callable[[], T]) -> T:
    """Ask Ray's head.

    Raises:
        EngineError: it does not answer.
    """
    try:
        return call()
    except Exception as error:
        # A border: whatever Ray's client raises, the head has not done it.
        raise EngineError(
            f"Ray could not {what}: {_first_line(error)}. Is its head alive? `ray status` shows it."
        ) from error
