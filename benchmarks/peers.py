"""Other serving libraries, each in a virtual environment of its own, installed when asked for."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.processes import TargetError
from benchmarks.sides import MakeTarget, Side, handle_driver
from benchmarks.targets import ROOT, HttpTarget, Launch

VENVS = Path(__file__).parent / ".venvs"
#: Ray with its dependencies downloads several hundred megabytes.
_INSTALL_TIMEOUT_S = 900.0
#: A first start of Ray on two cores takes 13 s; BentoML and LitServe 2 s.
_READY_TIMEOUT_S = 90.0


#: The version that Remora's own engine is tested with. It brings HAProxy along.
_RAY = ("ray[serve]==2.60.0", "uvloop", "httptools", "numpy", "psutil")
#: How Ray Serve is told to be fast: HAProxy in front of replicas that serve HTTP themselves, gRPC
#: between processes, and user code on the loop that serves.
_THROUGHPUT = {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}


@dataclass(frozen=True)
class Peer:
    """A library to compare with.

    Attributes:
        name: what `--peers` selects.
        package: whose version is told; it names the virtual environment, too.
        requirements: what pip installs.
        variables: environment variables of the mode that is measured.
    """

    name: str
    package: str
    requirements: Sequence[str]
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Its virtual environment."""
        return VENVS / self.package


PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        Peer("ray", "ray", _RAY),
        Peer("ray-throughput", "ray", _RAY, _THROUGHPUT),
        Peer("mosec", "mosec", ["mosec"]),
        Peer("litserve", "litserve", ["litserve"]),
        Peer("bentoml", "bentoml", ["bentoml"]),
    )
}


def parse_peers(text: str) -> list[Peer]:
    """Return the peers named in a list separated by spaces or commas. Pure.

    Raises:
        ValueError: a name is unknown.
    """
    names = text.replace(",", " ").split()
    if unknown := sorted(set(names) - set(PEERS)):
        raise ValueError(f"unknown peers {', '.join(unknown)}; there are {', '.join(PEERS)}")
    return [PEERS[name] for name in dict.fromkeys(names)]


def install(peer: Peer) -> str:
    """Make the peer's environment if it is not there yet, and return its interpreter.

    Raises:
        TargetError: pip failed or took too long.
    """
    folder = peer.folder
    python = folder / "bin" / "python"
    stamp = folder / ".requirements"
    wanted = "\n".join(peer.requirements)
    if stamp.is_file() and stamp.read_text() == wanted:
        return str(python)
    for argv in (
        [sys.executable, "-m", "venv", str(folder)],
        [str(python), "-m", "pip", "install", "--progress-bar", "on", *peer.requirements],
    ):
        try:
            # Output goes to the terminal: an installation of minutes must show that it moves.
            status = subprocess.run(
                argv, stdout=sys.stderr, timeout=_INSTALL_TIMEOUT_S, check=False
            ).returncode
        except subprocess.TimeoutExpired as error:
            raise TargetError(f"`{' '.join(argv)}` took over {error.timeout:.0f} s") from error
        if status != 0:
            raise TargetError(f"`{' '.join(argv)}` exited with status {status}")
    stamp.write_text(wanted)
    return str(python)


def version_of(peer: Peer) -> str:
    """Return the installed version of an installed peer."""
    code = f"import importlib.metadata as m; print(m.version({peer.package!r}))"
    python = str(peer.folder / "bin" / "python")
    done = subprocess.run(
        [python, "-c", code], capture_output=True, text=True, timeout=30, check=False
    )
    return done.stdout.strip() or "unknown"


def side_of(peer: Peer, python: str) -> Side:
    """Return the peer as a column of the table. Pure."""
    if peer.package == "ray":
        echo = "benchmarks.apps.ray_echo:app"
        return Side(
            peer.name,
            {
                "hello": _ray(python, "benchmarks.apps.ray_hello:app", peer.variables),
                "fastapi": _ray(python, "benchmarks.apps.ray_api:app", peer.variables),
                "handle": handle_driver(
                    python, "ray.serve", echo, _READY_TIMEOUT_S, peer.variables
                ),
            },
        )
    return Side(peer.name, {"hello": _SERVERS[peer.name](python)})


def _ray(python: str, app: str, variables: Mapping[str, str]) -> MakeTarget:
    """`serve run` takes its port from a file only."""

    def launch(port: int, folder: Path) -> Launch:
        config = folder / "serve.yaml"
        config.write_text(
            f"http_options: {{host: 127.0.0.1, port: {port}}}\n"
            f"applications: [{{name: default, route_prefix: /, import_path: '{app}'}}]\n"
        )
        return Launch(
            [str(Path(python).parent / "serve"), "run", str(config)],
            {"RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": str(ROOT), **variables},
        )

    return lambda scratch: HttpTarget("ray", launch, scratch, ready_timeout_s=_READY_TIMEOUT_S)


def _mosec(python: str) -> MakeTarget:
    def launch(port: int, folder: Path) -> Launch:
        argv = [python, "benchmarks/apps/mosec_hello.py", "--address", "127.0.0.1"]
        return Launch([*argv, "--port", str(port), "--path", str(folder / "ipc")])

    return lambda scratch: HttpTarget(
        "mosec", launch, scratch, path="/inference", body=b"ok", ready_timeout_s=_READY_TIMEOUT_S
    )


def _litserve(python: str) -> MakeTarget:
    def launch(port: int, folder: Path) -> Launch:
        return Launch([python, "benchmarks/apps/litserve_hello.py", str(port)])

    return lambda scratch: HttpTarget(
        "litserve", launch, scratch, path="/predict", body=b"{}", ready_timeout_s=_READY_TIMEOUT_S
    )


def _bentoml(python: str) -> MakeTarget:
    def launch(port: int, folder: Path) -> Launch:
        return Launch(
            [
                *[str(Path(python).parent / "bentoml"), "serve"],
                *["benchmarks.apps.bentoml_hello:Hello", "--port", str(port)],
                *["--host", "127.0.0.1"],
            ],
            {"BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": str(folder / "home")},
        )

    return lambda scratch: HttpTarget(
        "bentoml", launch, scratch, path="/hello", body=b"{}", ready_timeout_s=_READY_TIMEOUT_S
    )


_SERVERS = {"mosec": _mosec, "litserve": _litserve, "bentoml": _bentoml}
