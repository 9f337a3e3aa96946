"""The command line: one file per command, each imported when it is called.

stdout is data, stderr is progress and errors. Exit codes: 0 complete, 1 some cell failed, 2 usage,
130 interrupted. Nothing here imports torch or pandas before a command needs it.
"""

import sys
from collections.abc import Sequence
from importlib import import_module

import click

from robustdyn import __version__
from robustdyn.errors import UserError, suggest

COMMANDS = {  # name -> file; a file called list would hide Python's own list in this package
    "list": "listing",
    "show": "show",
    "run": "run",
    "report": "report",
    "check": "check",
    "bench": "bench",
    "register": "register",
    "train": "train",
    "doctor": "doctor",
}


class _Commands(click.Group):
    """A group whose commands are the functions `command` of the files in this folder."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*COMMANDS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        return import_module(f"robustdyn.cli.{COMMANDS[cmd_name]}").command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            raise UserError(
                f"Unknown command '{name}'.",
                f"{suggest(name, COMMANDS)}Choose one of: {', '.join(COMMANDS)}.",
            )
        return super().resolve_command(ctx, args)


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Start with: robustdyn run quickstart",
)
@click.version_option(__version__, prog_name="robustdyn")
def cli() -> None:
    """Attack the accuracy and the compute of dynamic neural networks, and compare them."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command line and exit with its code."""
    sys.exit(_exit_code(arguments))


def _exit_code(arguments: Sequence[str] | None) -> int:
    try:
        args = None if arguments is None else [*arguments]
        result = cli.main(args, prog_name="robustdyn", standalone_mode=False)
    except UserError as error:
        return _say(error.message, error.remedy)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return 2
    except click.UsageError as error:
        place = error.ctx.command_path if error.ctx else "robustdyn"
        return _say(" ".join(error.format_message().split()), f"{place} --help")
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        return 130
    return result if isinstance(result, int) else 0


def _say(message: str, remedy: str) -> int:
    click.echo(f"Error: {message}\nTry: {remedy}", err=True)
    return 2
