"""`robustdyn bench`: what skipped work saves in time."""

import click

from robustdyn.cli.bench_kernels import kernels
from robustdyn.cli.bench_models import models


@click.group("bench", short_help="Time kernels or models, dense against sparse.")
def command() -> None:
    """Time sparse execution against dense execution, in turn, so that a busy machine slows both."""


command.add_command(kernels)
command.add_command(models)
