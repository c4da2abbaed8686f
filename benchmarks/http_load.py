"""HTTP load: `wrk` for rates, a blocking socket for the latency of one connection.

Why two: `wrk` is the load generator with the least cost of its own when many connections are
busy. With one connection a blocking socket spends one system call less for each request than an
event loop, keeps every sample instead of a histogram, and takes its time stamps right beside the
system calls; see `docs/benchmarks.md` for the comparison.
"""

from __future__ import annotations

import gc
import re
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import TargetError
from benchmarks.stats import percentile

#: Requests answered before the first one that counts.
_WARM_UP_REQUESTS = 200
_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class HttpRequest:
    """What a load generator sends.

    Attributes:
        port: on 127.0.0.1.
        path: with leading slash.
        body: None sends a GET, else a POST of these bytes.
        content_type: of the body.
    """

    port: int
    path: str = "/"
    body: bytes | None = None
    content_type: str = "application/json"

    @property
    def url(self) -> str:
        """The address as a URL."""
        return f"http://127.0.0.1:{self.port}{self.path}"

    def encode(self) -> bytes:
        """Return the request as HTTP/1.1 bytes with a connection that is kept open. Pure."""
        head = f"{'GET' if self.body is None else 'POST'} {self.path} HTTP/1.1\r\n"
        head += f"Host: 127.0.0.1:{self.port}\r\n"
        if self.body is not None:
            head += f"Content-Type: {self.content_type}\r\nContent-Length: {len(self.body)}\r\n"
        return head.encode() + b"\r\n" + (self.body or b"")


@dataclass(frozen=True)
class WrkResult:
    """What `wrk` printed.

    Attributes:
        requests_per_s: its "Requests/sec".
        refused: answers that were neither 2xx nor 3xx.
        socket_errors: connect, read, write and timeout errors together.
    """

    requests_per_s: float
    refused: int
    socket_errors: int


def parse_wrk(output: str) -> WrkResult:
    """Read the figures from the text that `wrk` prints. Pure.

    Raises:
        ValueError: the text has no "Requests/sec" line.
    """
    rate = re.search(r"^Requests/sec:\s*([\d.]+)", output, re.MULTILINE)
    if rate is None:
        raise ValueError(f"wrk printed no 'Requests/sec' line but: {output.strip()[:500]!r}")
    refused = re.search(r"Non-2xx or 3xx responses:\s*(\d+)", output)
    errors = re.search(r"Socket errors:(.*)", output)
    return WrkResult(
        requests_per_s=float(rate[1]),
        refused=int(refused[1]) if refused else 0,
        socket_errors=sum(map(int, re.findall(r"\d+", errors[1]))) if errors else 0,
    )


def require_wrk() -> str:
    """Return the path of `wrk`.

    Raises:
        TargetError: it is not installed.
    """
    if (path := shutil.which("wrk")) is None:
        raise TargetError("`wrk` is not installed: run `apt-get install wrk` (Debian, Ubuntu)")
    return path


def wrk_script(request: HttpRequest) -> str:
    """Return the Lua script that makes `wrk` send `request`, empty for a plain GET. Pure."""
    if request.body is None:
        return ""
    body = "".join(f"\\{byte:03d}" for byte in request.body)
    return (
        f'wrk.method = "POST"\nwrk.body = "{body}"\n'
        f'wrk.headers["Content-Type"] = "{request.content_type}"\n'
    )


def requests_per_s(request: HttpRequest, duration_s: int, connections: int, scratch: Path) -> float:
    """Return how many requests a second are answered over `connections` connections.

    Args:
        request: what to send.
        duration_s: whole seconds (`wrk` takes no fractions).
        connections: kept open and busy throughout.
        scratch: folder for the script of a POST.

    Raises:
        TargetError: `wrk` is missing or failed, or a request was refused or lost.
    """
    argv = [require_wrk(), "-t1", f"-c{connections}", f"-d{duration_s}s"]
    if script := wrk_script(request):
        (scratch / "request.lua").write_text(script)
        argv += ["-s", str(scratch / "request.lua")]
    try:
        done = subprocess.run(
            [*argv, request.url],
            capture_output=True,
            text=True,
            timeout=duration_s + 20,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise TargetError(f"wrk did not end within {error.timeout} s on {request.url}") from error
    if done.returncode != 0:
        raise TargetError(f"wrk exited with {done.returncode}: {done.stderr.strip()}")
    result = parse_wrk(done.stdout)
    if result.refused or result.socket_errors:
        raise TargetError(
            f"under {connections} connections {request.url} refused {result.refused} requests "
            f"and broke {result.socket_errors}: a rate with lost requests is no result"
        )
    return result.requests_per_s


def response_is_complete(data: bytes) -> bool:
    """Tell whether `data` holds one whole HTTP/1.1 response. Pure.

    Understands Content-Length and chunked bodies, which is what the servers measured here send.
    """
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return False
    if length := _CONTENT_LENGTH.search(data, 0, end + 2):
        return len(data) >= end + 4 + int(length[1])
    return data.endswith(b"0\r\n\r\n")


def _exchange(connection: socket.socket, message: bytes) -> tuple[int, bytes]:
    """Send one request and return (nanoseconds to the last byte of the answer, the answer).

    The time stamp is taken before the answer is looked at, so parsing costs nothing measured.
    """
    answer = b""
    begin = time.perf_counter_ns()
    connection.sendall(message)
    while True:
        part = connection.recv(65536)
        now = time.perf_counter_ns()
        answer += part
        if response_is_complete(answer):
            return now - begin, answer
        if not part:
            raise TargetError(f"the server closed the connection after {answer[:200]!r}")


def is_answered(request: HttpRequest, timeout_s: float) -> bool:
    """Tell whether one request on a new connection is answered with status 200."""
    try:
        with socket.create_connection(("127.0.0.1", request.port), timeout=timeout_s) as connection:
            _, answer = _exchange(connection, request.encode())
    except (OSError, TargetError):
        return False
    return answer.startswith(b"HTTP/1.1 200")


def p50_ms(request: HttpRequest, duration_s: float) -> float:
    """Return the median time of a request on one kept-alive connection, in milliseconds.

    Raises:
        TargetError: an answer was not 200, or the connection broke.
    """
    message = request.encode()
    samples: list[float] = []
    gc.disable()
    try:
        with socket.create_connection(("127.0.0.1", request.port), timeout=10) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for _ in range(_WARM_UP_REQUESTS):
                _exchange(connection, message)
            end = time.perf_counter() + duration_s
            while time.perf_counter() < end:
                elapsed_ns, answer = _exchange(connection, message)
                if not answer.startswith(b"HTTP/1.1 200"):
                    raise TargetError(f"{request.url} answered {answer[:200]!r}")
                samples.append(elapsed_ns / 1e6)
    except OSError as error:
        raise TargetError(f"the connection to {request.url} broke: {error}") from error
    finally:
        gc.enable()
    return percentile(samples, 0.5)
