"""Commands that help to understand and to write an application.

Rules: no work in here. A command imports what it needs when it is called, so that `remora version`
does not pay for `remora status`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from remora.cli.flags import app_dir_flag, arguments, name_flag


@click.command()
@click.argument("target", metavar="[APP[/DEPLOYMENT]]", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON: a list of deployments.")
def explain(target: str | None, as_json: bool) -> None:
    """Say how many replicas there should be, and how the number came about."""
    from remora.cli.explain import explain as show

    show(target, as_json=as_json)


@click.command()
@click.argument("target", metavar="[MODULE:APP]", required=False)
@arguments
@app_dir_flag
@click.option(
    "--load",
    "loads",
    multiple=True,
    metavar="[DEPLOYMENT=]LOAD",
    help="SECONDS@RATE,... or SECONDS@RATE-RATE; a CSV file with a time (and how long it took) in each line; or a proxy's access log. May be repeated.",
)
@click.option(
    "--service",
    "services",
    multiple=True,
    metavar="[DEPLOYMENT=]SECONDS",
    help="How long a request takes, where the load does not say.  [default: 0.1]",
)
@click.option(
    "--variation",
    type=click.FloatRange(0),
    default=1.0,
    show_default=True,
    help="Standard deviation of that, by its mean.",
)
@click.option(
    "--parallel",
    type=click.IntRange(1),
    help="Requests that a replica works on at the same time.  [default: all that it takes]",
)
@click.option(
    "--start",
    "start_s",
    type=click.FloatRange(0),
    default=0.5,
    show_default=True,
    help="Seconds until a new replica serves.",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="FIELD=VALUE",
    help="A field of autoscaling_config; may be repeated.",
)
@click.option("--for", "length_s", type=click.FloatRange(1), help="Seconds.  [default: the load's]")
@click.option("--seed", type=int, default=0, show_default=True, help="The same one, the same load.")
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write a picture to this file, as SVG.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures only, as JSON.")
def simulate(**said: Any) -> None:
    """Show what autoscaling would do under a load: replicas, queue and latency.

    MODULE:APP names the application whose options are tried; without it, --set describes one deployment.
    """
    from remora.cli.simulate import SimulationOptions, simulate_load

    simulate_load(SimulationOptions(**said))


@click.command()
@click.argument("target", metavar="MODULE:APP")
@arguments
@app_dir_flag
@name_flag
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="File to write, or a folder for a file <module>_handles.py.  [default: standard output]",
)
def stubs(
    target: str, arguments: tuple[str, ...], app_dir: Path, name: str, output: Path | None
) -> None:
    """Write a module with typed handles of an application, for type checkers and editors."""
    from remora.cli.stubs import write_stubs

    write_stubs(target, arguments, app_dir.resolve(), name, output)
