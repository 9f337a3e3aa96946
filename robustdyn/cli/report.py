"""`robustdyn report`: the HTML report of a run."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from pandas import DataFrame


@click.command("report", short_help="Write the HTML report of a run.")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the report.  [RUN/report]")
@click.option("--title", help="Title of the page.  [the suite's]")
def command(run: Path, out: Path | None, title: str | None) -> None:
    """Write figures, tables and one self-contained page from the results in RUN.

    \b
    robustdyn report runs/quickstart
    """
    from robustdyn.results import load_results

    click.echo(write_run_report(run, load_results(run), out=out, title=title))


def write_run_report(
    run: Path, rows: "DataFrame", *, out: Path | None = None, title: str | None = None
) -> Path:
    """Write the report of the rows of a run; return its page.

    Raises:
        UserError: if there are no results, or the folder cannot be written.
    """
    from robustdyn.errors import UserError
    from robustdyn.reports import write_report
    from robustdyn.results import load_metadata, load_plan

    suite = load_plan(run).get("suite", {})
    cells = load_metadata(run)
    title = title or suite.get("title") or f"Results of {run.name}"
    try:
        return write_report(rows, out or run / "report", title=title, about=_about(suite, cells))
    except OSError as error:
        raise UserError(
            f"The report cannot be written: {error}.", "Choose another folder with --out."
        ) from error


def _about(suite: dict[str, Any], cells: list[dict[str, Any]]) -> dict[str, Any]:
    said = {key: suite[key] for key in ("name", "samples", "split") if key in suite}
    about: dict[str, Any] = {"suite" if key == "name" else key: said[key] for key in said}
    about["seed"] = ", ".join(sorted({str(cell["definition"]["seed"]) for cell in cells}))
    for key in ("robustdyn", "revision", "python", "torch", "numpy", "device"):
        about[key] = ", ".join(sorted({str(cell[key]) for cell in cells if cell[key]}))
    about["computed"] = f"{min(c['created'] for c in cells)} to {max(c['created'] for c in cells)}"
    about["compute time"] = f"{sum(cell['seconds'] for cell in cells) / 60:.1f} core minutes"
    about = {key: str(value) for key, value in about.items() if value != ""}
    return about | {"cells": {cell["id"]: cell["definition"] for cell in cells}}
