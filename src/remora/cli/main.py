"""The command `remora`: which commands there are, and how it ends.

Rules: no work in here; what is typed is declared in `commands`.
"""

from __future__ import annotations

import signal
import sys
from typing import NoReturn

import click

from remora import __version__
from remora.cli.errors import FAILED_STATUS, INTERRUPTED_STATUS, CommandError
from remora.errors import RemoraError

if not {"-h", "--help"}.isdisjoint(sys.argv) or len(sys.argv) == 1:
    # Only help looks better for it, and it costs 20 ms in which nothing else happens.
    import rich_click.patch

    rich_click.patch.patch()

# Not before that: it changes what makes a command.
from remora.cli.commands import applications, instance, tools


@click.group(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="One instance lives in one state folder: the environment variable REMORA_HOME, or ~/.remora.",
)
@click.version_option(__version__, message="%(version)s")
def cli() -> None:
    """Serve models, on this machine, without losing a request."""


@cli.command()
def version() -> None:
    """Print the version."""
    click.echo(__version__)


for _command in (
    applications.build,
    applications.config,
    applications.delete,
    applications.deploy,
    applications.diff,
    applications.history,
    applications.plan,
    applications.rollback,
    applications.schema,
    instance.controller_health,
    instance.logs,
    instance.run,
    instance.shutdown,
    instance.start,
    instance.status,
    tools.explain,
    tools.simulate,
    tools.stubs,
):
    cli.add_command(_command)


def _fail(message: str, status: int) -> NoReturn:
    click.echo(f"{click.style('Error:', fg='red', bold=True)} {message}", err=True)
    sys.exit(status)


def main() -> None:
    """Run the command line, and end the process with its exit status."""
    try:
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
            # The package has set it, for the time of the imports above.
            signal.signal(signal.SIGINT, signal.default_int_handler)
        # Without standalone mode, `--help` comes back as the status 0 rather than as an exit.
        sys.exit(cli.main(prog_name="remora", standalone_mode=False))
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except CommandError as error:
        if error.user_traceback:
            click.echo(error.user_traceback, err=True)
        _fail(error.message, error.status)
    except RemoraError as error:
        _fail(error.message, FAILED_STATUS)
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        sys.exit(INTERRUPTED_STATUS)
