"""What is told while an application comes up, and after.

Rules: `news` and `summary` are pure; the two narrators print what they say, one line by line for
files and pipes, one in place for a terminal. All of it goes to stderr.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from remora.core.status_text import TROUBLE, awaited
from remora.wire.control import ApplicationStatus, DeploymentStatus

if TYPE_CHECKING:
    from rich.console import RenderableType

#: Statuses of an application in which nothing more comes by itself.
SETTLED = frozenset({"RUNNING", "DEPLOY_FAILED", "UNHEALTHY"})


def summary(deployment: DeploymentStatus) -> str:
    """Say in a few words how far a deployment is. Pure."""
    running = deployment.replica_states.get("RUNNING", 0)
    replicas = f"{running}/{deployment.target_num_replicas} replicas"
    if deployment.status == "HEALTHY":
        return f"{replicas} running"
    if deployment.status_trigger == "DELETING":
        return f"leaving, {running} replicas left"
    word = "starting" if deployment.status == "UPDATING" else deployment.status.lower()
    # With every count: the line that says what for may be many lines above.
    waiting = f", {deployment.num_waiting} waiting for room" if deployment.num_waiting else ""
    return f"{word.replace('_', ' ')}, {replicas} running{waiting}"


def news(before: ApplicationStatus | None, now: ApplicationStatus) -> list[str]:
    """Return a line for each deployment that says something else than before. Pure."""
    known = {} if before is None else before.deployments
    lines: list[str] = []
    for name, deployment in now.deployments.items():
        old = known.get(name)
        if old is None or summary(old) != summary(deployment):
            lines.append(f"{name}: {summary(deployment)}")
        if (reason := awaited(deployment)) and (old is None or awaited(old) != reason):
            lines.append(f"{name}: {reason}")
    return lines


class Progress(Protocol):
    """Tells what happens to applications."""

    def show(self, apps: Mapping[str, ApplicationStatus]) -> None:
        """Tell what changed."""

    def close(self) -> None:
        """Leave the terminal as it was."""


class PlainProgress:
    """One line per change, for logs and pipes."""

    def __init__(self, *, named: bool = True) -> None:
        self._named = named
        self._last: dict[str, ApplicationStatus] = {}

    def take(self, apps: Mapping[str, ApplicationStatus]) -> None:
        """Take this for known: only what is different is told from here on."""
        self._last = dict(apps)

    def show(self, apps: Mapping[str, ApplicationStatus]) -> None:
        """Print what changed since the last call."""
        for name, app in apps.items():
            before = self._last.get(name)
            prefix = f"{name}/" if self._named else ""
            lines = [f"{prefix}{line}" for line in news(before, app)]
            if (said := importing(app)) and (before is None or importing(before) != said):
                lines.insert(0, f"{name}: {said}")
            for line in lines:
                print(line, file=sys.stderr, flush=True)
        self.take(apps)

    def close(self) -> None:
        """Nothing to restore."""


class LiveProgress:
    """One line per deployment that changes in place, for a terminal."""

    def __init__(self, *, named: bool = True) -> None:
        from rich.console import Console
        from rich.live import Live

        self._named = named
        self._live = Live(console=Console(stderr=True), transient=False, refresh_per_second=8)
        self._live.start()

    def show(self, apps: Mapping[str, ApplicationStatus]) -> None:
        """Draw the present state."""
        from rich.console import Group
        from rich.text import Text

        parts: list[RenderableType] = []
        for name, app in apps.items():
            if self._named:
                parts.append(Text.assemble((name, "bold"), f"  {importing(app)}"))
            parts.append(_table(app))
        self._live.update(Group(*parts), refresh=True)

    def close(self) -> None:
        """Stop redrawing; the last picture stays."""
        self._live.stop()


def importing(app: ApplicationStatus) -> str:
    """Say what an application waits for before its deployments change; empty: nothing. Pure."""
    lines = app.message.splitlines()
    return lines[0] if app.status == "DEPLOYING" and lines and "import" in lines[0] else ""


def progress(*, named: bool = True) -> Progress:
    """Choose by where stderr goes.

    Args:
        named: say of which application everything is; needless where there is one.
    """
    return (LiveProgress if sys.stderr.isatty() else PlainProgress)(named=named)


def _table(status: ApplicationStatus) -> RenderableType:
    from rich.spinner import Spinner
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 1))
    for name, deployment in status.deployments.items():
        mark: RenderableType
        if deployment.status == "HEALTHY":
            mark = Text("✓", style="green")
        elif deployment.status in TROUBLE:
            mark = Text("✗", style="red")
        else:
            mark = Spinner("dots", style="cyan")
        table.add_row(mark, Text(name, style="bold"), Text(summary(deployment)))
        if reason := awaited(deployment):
            table.add_row("", "", Text(reason, style="yellow"))
    return table
