"""Several hosts on one machine: network namespaces on a bridge, each with a node of Ray.

Each host has an address, a loopback interface, a folder for Ray and shared memory of its own; its
processes reach the others over the bridge alone, and a cable can be pulled. The test itself reaches all of them
from the machine's own namespace, at the bridge.

Needs root and `ip` (Debian: iproute2).
"""

from __future__ import annotations

import ipaddress
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
import trustme
from tests.e2e import processes

from remora.options.node import NodeOptions

REPOSITORY = Path(__file__).resolve().parents[2]
RAY = str(Path(sys.executable).parent / "ray")
PORT = 6379
STORE_BYTES = 80 * 1024 * 1024
#: Ray on a busy machine takes its time.
START_LIMIT_S = 120.0
#: A node that does not answer for about four seconds is lost.
QUICK_LOSS: Mapping[str, int] = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 1000,
    "health_check_failure_threshold": 3,
}


def why_not() -> str:
    """Say why this machine has no namespaces to give; empty: it has."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "network namespaces need `ip` (Debian: iproute2)"
    name = f"rm{secrets.token_hex(3)}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"no network namespace can be made here: {made.stderr.strip()}"
    _ip("netns", "delete", name)
    return ""


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{shlex.join(command)}: {done.stderr}"
    return done.stdout


def _ip(*args: str) -> str:
    return _run("ip", *args)


class Host:
    """One namespace.

    Attributes:
        name: of the namespace.
        address: on the bridge.
    """

    def __init__(
        self, name: str, address: str, bridge: str, folder: Path, number: int, delay_s: float
    ) -> None:
        self.name = name
        self.address = address
        self._cable = f"{bridge}p{number}"
        self.folder = folder / name
        #: Shared memory, certificate and Ray's files of this host; its processes see them where all hosts have them.
        self._own = {
            Path("/dev/shm"): self.folder / "shm",
            folder / "own": self.folder / "own",
            folder / "ray": self.folder / "ray",
        }
        for path in (*self._own, *self._own.values()):
            path.mkdir(parents=True, exist_ok=True)
        _run("mount", "-t", "tmpfs", "none", str(self.folder / "shm"))
        _ip("netns", "add", name)
        self._delay: subprocess.Popen[str] | None = None
        if delay_s:
            self._delay = self._slow_cable(delay_s)
        else:
            peer = ("peer", "name", "eth0", "netns", name)
            _ip("link", "add", self._cable, "type", "veth", *peer)
        _ip("link", "set", self._cable, "master", bridge, "up")
        for rest in (
            ("link", "set", "lo", "up"),
            ("addr", "add", f"{address}/24", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
        ):
            _ip("-n", name, *rest)

    def _slow_cable(self, delay_s: float) -> subprocess.Popen[str]:
        far = f"{self._cable}f"
        words = [sys.executable, "-m", "tests.ray.delay", self._cable, far, str(delay_s)]
        carrier = subprocess.Popen(words, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
        assert carrier.stdout is not None
        assert carrier.stdout.readline() == "ready\n"
        _ip("link", "set", far, "netns", self.name, "name", "eth0")
        return carrier

    def popen(self, *command: str, **environment: str) -> subprocess.Popen[str]:
        """Run something on this host; what it prints is added to its `output`."""
        mounts = [f"mount --bind {own} {seen}" for seen, own in self._own.items()]
        script = " && ".join([*mounts, f"exec {shlex.join(command)}"])
        with (self.folder / "out").open("a") as out:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.name, "sh", "-c", script],
                env={**os.environ, **environment},
                stdout=out,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )

    def run(self, *command: str, **environment: str) -> None:
        """Run something that ends, and ends well."""
        code = self.popen(*command, **environment).wait(START_LIMIT_S)
        assert code == 0, f"{shlex.join(command)}: {code}\n{self.output}"

    @property
    def output(self) -> str:
        """All that was printed on it."""
        return (self.folder / "out").read_text(errors="replace")

    def pull(self) -> None:
        """Cut it off: what is sent arrives nowhere, and nobody is told."""
        _ip("link", "set", self._cable, "down")

    def plug(self) -> None:
        """Bring it back."""
        _ip("link", "set", self._cable, "up")

    def pids(self) -> list[int]:
        """Every process on it."""
        return [int(line) for line in _ip("netns", "pids", self.name).split()]

    def states(self) -> list[Path]:
        """State folders that Ray's nodes on it have had, by names that are short enough for sockets."""
        found = []
        for number, path in enumerate(sorted(self.folder.glob("ray/session_2*/remora-*"))):
            short = self.folder / f"s{number}"
            short.unlink(missing_ok=True)
            short.symlink_to(path)
            found.append(short)
        return found

    def ports(self, title: str) -> set[int]:
        """TCP ports of its address on which processes with such a title listen for other hosts."""
        lines = _run("ip", "netns", "exec", self.name, "ss", "-H", "-l", "-t", "-n", "-p")
        found = set()
        for line in lines.splitlines():
            address, _, port = line.split()[3].rpartition(":")
            pids = [int(each.partition(",")[0]) for each in line.split("pid=")[1:]]
            is_meant = any(processes.title(pid).startswith(title) for pid in pids)
            if address == self.address and is_meant:
                found.add(int(port))
        return found

    def kill_all(self) -> None:
        """Pull the plug of the host itself."""
        deadline = time.monotonic() + 10
        while pids := self.pids():
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            assert time.monotonic() < deadline, f"processes stay on {self.name}: {pids}"
            time.sleep(0.02)

    def remove(self) -> None:
        """End its processes, and take it away."""
        self.kill_all()
        if self._delay is not None:
            self._delay.kill()
            self._delay.communicate()
        _ip("netns", "delete", self.name)
        _run("umount", "--lazy", str(self.folder / "shm"))


class Hosts:
    """Hosts on one bridge, and the Ray cluster on them; the first has its head."""

    def __init__(
        self,
        number: int,
        *,
        num_cpus: int = 2,
        labels: Sequence[Mapping[str, str]] = (),
        config: Mapping[str, int] = QUICK_LOSS,
        environment: Mapping[str, str] = {},
        redis_port: int | None = None,
        delay_s: float = 0.0,
    ) -> None:
        """Make the hosts; entering the `with` block starts Ray on them.

        Args:
            number: of hosts.
            num_cpus: that Ray gives away on each.
            labels: of the nodes, in order.
            config: of Ray's head.
            environment: variables for Ray and all that it starts.
            redis_port: of a Redis outside that keeps what Ray's head knows; None: nobody does.
            delay_s: of each frame to and from all hosts but the first.
        """
        key = secrets.token_hex(2)
        self.folder = Path(tempfile.mkdtemp(prefix="remora-h-"))
        self._bridge = f"rm{key}"
        # Nobody routes these, and another run has others.
        network = ipaddress.ip_network((0x0A4D0000 + (int(key, 16) % 256 << 8), 24))
        addresses = list(network.hosts())
        self.outside = str(addresses[-1])
        self._num_cpus = num_cpus
        self._labels = [dict(each) for each in labels] or [{} for _ in range(number)]
        self._config = dict(config)
        # The bridge has nobody else on it: Ray needs no token.
        paths = (REPOSITORY / "src", REPOSITORY, REPOSITORY / "tests" / "e2e")
        self.environment = {
            "RAY_AUTH_MODE": "disabled",
            "RAY_DEDUP_LOGS": "0",
            "RAY_raylet_start_wait_time_s": "120",
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
            **environment,
        }
        if redis_port is not None:
            self.environment["RAY_REDIS_ADDRESS"] = f"{self.outside}:{redis_port}"
        self.hosts: list[Host] = []
        self._is_removed = False
        _ip("link", "add", self._bridge, "type", "bridge")
        try:
            _ip("addr", "add", f"{self.outside}/24", "dev", self._bridge)
            _ip("link", "set", self._bridge, "up")
            for index in range(number):
                address = str(addresses[index])
                self.hosts.append(
                    Host(
                        f"rm{key}-{index + 1}",
                        address,
                        self._bridge,
                        self.folder,
                        index + 1,
                        delay_s if index else 0.0,
                    )
                )
        except BaseException:
            self.remove()
            raise

    def certify(self) -> NodeOptions:
        """Give each host a certificate of its own, and one to whoever is outside."""
        authority = trustme.CA()
        places = {host.address: host.folder / "own" for host in self.hosts}
        for address, folder in {**places, self.outside: self.folder / "own"}.items():
            issued = authority.issue_cert(address)
            issued.private_key_pem.write_to_path(folder / "key.pem")
            issued.cert_chain_pems[0].write_to_path(folder / "cert.pem")
            authority.cert_pem.write_to_path(folder / "ca.pem")
        seen = self.folder / "own"
        return NodeOptions(
            ssl_certfile=f"{seen}/cert.pem",
            ssl_keyfile=f"{seen}/key.pem",
            ssl_ca_certs=f"{seen}/ca.pem",
        )

    @property
    def address(self) -> str:
        """Of Ray's head."""
        return f"{self.hosts[0].address}:{PORT}"

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.remove()

    def start(self) -> None:
        """Start Ray on all hosts."""
        self.start_head()
        # Each takes seconds, most of them waiting.
        with ThreadPoolExecutor() as pool:
            list(pool.map(self.start_node, range(1, len(self.hosts))))

    def start_head(self) -> None:
        """Start Ray's head, and wait until it takes connections."""
        self._start(
            0,
            "--head",
            f"--port={PORT}",
            "--include-dashboard=false",
            f"--temp-dir={self.folder}/ray",
            f"--system-config={msgspec.json.encode(self._config).decode()}",
        )

    def start_node(self, index: int) -> None:
        """Start another node of Ray."""
        self._start(index, f"--address={self.address}")

    def _start(self, index: int, *args: str) -> None:
        host = self.hosts[index]
        labels = ",".join(f"{name}={value}" for name, value in self._labels[index].items())
        host.run(
            RAY,
            "start",
            *args,
            f"--node-ip-address={host.address}",
            f"--num-cpus={self._num_cpus}",
            f"--object-store-memory={STORE_BYTES}",
            "--disable-usage-stats",
            *([f"--labels={labels}"] if labels else []),
            **self.environment,
        )

    def head_process(self) -> int:
        """The process in which Ray's head keeps what it knows."""
        for pid in self.hosts[0].pids():
            if _words(pid, "cmdline")[:1] and _words(pid, "cmdline")[0].endswith("gcs_server"):
                return pid
        raise AssertionError("Ray's head does not run")

    def kill_head_process(self) -> list[str]:
        """Kill it; returns the words that started it."""
        pid = self.head_process()
        words = _words(pid, "cmdline")
        os.kill(pid, signal.SIGKILL)
        return words

    def start_head_process(self, words: Sequence[str]) -> None:
        """Start it as it was started before."""
        self.hosts[0].popen(*words, **self.environment)

    def remove(self) -> None:
        """End everything on the hosts, and take them away. The second time: nothing."""
        if self._is_removed:
            return
        self._is_removed = True
        for host in self.hosts:
            host.remove()
        _ip("link", "delete", self._bridge)
        shutil.rmtree(self.folder, ignore_errors=True)


def _words(pid: int, file: str) -> list[str]:
    try:
        return Path(f"/proc/{pid}/{file}").read_bytes().decode(errors="replace").split("\0")[:-1]
    except OSError:
        return []
