"""The command line.  Commands are imported when they are called, so that `holdfast --help` answers at once."""

from __future__ import annotations

import sys
from importlib import import_module

import click

from holdfast import __version__

#: Command -> (module, one-line help); the module defines a click command called `command`.
COMMANDS = {
    "audit": ("holdfast.cli.audit", "Ask of a model: does what it says still hold when something is perturbed?"),
    "verify": ("holdfast.cli.verify", "Decide a VNN-LIB property of an ONNX network: holds, or a counterexample."),
    "compare": ("holdfast.cli.compare", "Compare two runs example by example."),
    "report": ("holdfast.cli.report", "Show a run again: html, md, json or model-card."),
    "papers": ("holdfast.cli.papers", "Search the catalogue of methods and what their checks found."),
    "reproduce": ("holdfast.cli.reproduce", "Re-run the headline claim of a method."),
}


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = COMMANDS.get(cmd_name)
        return None if entry is None else import_module(entry[0]).command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="holdfast")
def cli() -> None:
    """holdfast: does a machine-learning result still hold when something is perturbed?

    \b
    holdfast audit                       the main job, on the embedded example
    holdfast audit MODEL --data DATA     the same for your own model
    holdfast COMMAND --help              what a command takes
    """


def main() -> None:
    """Run the command line; mistakes of the user end in one line on stderr and exit code 2."""
    try:
        code = cli(standalone_mode=False)
    except click.ClickException as error:
        click.echo(f"holdfast: {' '.join(error.format_message().split())}", err=True)
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("holdfast: interrupted", err=True)
        sys.exit(130)
    except Exception as error:
        from holdfast.core.errors import HoldfastError

        if not isinstance(error, HoldfastError):
            raise
        click.echo(f"holdfast: {' '.join(str(error).split())}", err=True)
        sys.exit(error.code)
    sys.exit(code if isinstance(code, int) else 0)
