"""`robustdyn run`: evaluate a suite."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from robustdyn.cli.output import columns, note, print_json

if TYPE_CHECKING:
    from robustdyn.runner import Counts
    from robustdyn.suite import Cell, Suite


def _complete_suite(ctx: click.Context, param: click.Parameter, start: str) -> list[CompletionItem]:
    from robustdyn.suites import list_suites

    names = [CompletionItem(name) for name in list_suites() if name.startswith(start)]
    return [*names, CompletionItem(start, type="file")]


@click.command("run", short_help="Evaluate a suite; goes on where an earlier run stopped.")
@click.argument("suite", shell_complete=_complete_suite)
@click.option(
    "--out", type=click.Path(path_type=Path), help="Run folder.  [runs/NAME-OF-THE-SUITE]"
)
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override the suite; repeatable."
)
@click.option("--limit", type=click.IntRange(min=1), help="At most so many samples per model.")
@click.option("--jobs", type=click.IntRange(min=1), help="Worker processes.  [one per core]")
@click.option("--seed", type=click.IntRange(min=0), help="Seed of the attacks.  [the suite's]")
@click.option("--dry-run", is_flag=True, help="Print the cells and which exist; do nothing.")
@click.option("--no-report", is_flag=True, help="Write no HTML report.")
@click.option("--json", "as_json", is_flag=True, help="Print one object instead of the table.")
def command(
    suite: str,
    out: Path | None,
    settings: tuple[str, ...],
    limit: int | None,
    jobs: int | None,
    seed: int | None,
    dry_run: bool,
    no_report: bool,
    as_json: bool,
) -> int:
    """Evaluate SUITE, the name of a shipped suite or a TOML file, and report.

    Finished cells stay when a run is interrupted; the same command goes on from there.

    \b
    robustdyn run quickstart
    robustdyn run quickstart --limit 10 --set attacks.steps=5 --out runs/smoke
    robustdyn run standard --set models=skipnet,spatial.* --set attacks.eps=4/255 --dry-run
    """
    from robustdyn.suites.parse import load_suite

    chosen = load_suite(suite, settings)
    if limit is not None:
        chosen = replace(chosen, samples=min(chosen.samples, limit))
    if seed is not None:
        chosen = replace(chosen, seed=seed)
    out = out or Path("runs") / chosen.name
    if dry_run:
        return _print_plan(chosen, out, as_json)
    counts = _evaluate(chosen, out, jobs)
    for failure in counts.failed:
        note(f"Failed: {failure.cell.id}  {failure.cell.label}\n  {failure.error}")
    if counts.failed:
        note(f"Tracebacks are in {out / 'failed'}; the same command tries these cells again.")
    _print_results(out, counts, with_report=not no_report, as_json=as_json)
    return 1 if counts.failed else 0


def _print_plan(suite: "Suite", out: Path, as_json: bool) -> int:
    from robustdyn.runner import missing_cells
    from robustdyn.suite import cells

    every = cells(suite)
    missing = {cell.id for cell in missing_cells(every, out)}
    if as_json:
        entries = [{"id": c.id, "exists": c.id not in missing, **c.definition()} for c in every]
        print_json(entries)
    else:
        click.echo(
            columns((c.id, "to do" if c.id in missing else "exists", c.label) for c in every)
        )
    note(f"{len(every)} cells, {len(missing)} to do: {_samples(every, missing)} samples in {out}")
    return 0


def _samples(every: list["Cell"], chosen: set[str]) -> int:
    return sum(cell.samples for cell in every if cell.id in chosen)


def _evaluate(suite: "Suite", out: Path, jobs: int | None) -> "Counts":
    from tqdm import tqdm

    from robustdyn.interrupts import heeded
    from robustdyn.runner import missing_cells, run
    from robustdyn.suite import cells

    every = cells(suite)
    todo = missing_cells(every, out)
    note(f"{suite.title}\n{len(every)} cells, {len(todo)} to do, in {out}")
    total = sum(cell.samples for cell in todo)
    with (
        heeded(),
        tqdm(total=total, unit=" samples", file=sys.stderr, disable=not sys.stderr.isatty()) as bar,
    ):
        return run(suite, out, jobs=jobs, progress=bar.update)


def _print_results(out: Path, counts: "Counts", *, with_report: bool, as_json: bool) -> None:
    from robustdyn.checks import find_flags, flag_table
    from robustdyn.cli.report import write_run_report
    from robustdyn.cli.table import terminal_table
    from robustdyn.labels import count
    from robustdyn.reports import headline_table, summary_table
    from robustdyn.results import load_results

    page = rows = None
    if counts.done or counts.skipped:
        rows = load_results(out)
        page = write_run_report(out, rows) if with_report else None
    flags = [] if rows is None else find_flags(rows)
    if as_json:
        summary = "[]" if rows is None else summary_table(rows).to_json(orient="records")
        answer: dict[str, Any] = {
            "run": str(out),
            "skipped": counts.skipped,
            "done": counts.done,
            "failed": [
                {"id": f.cell.id, "cell": f.cell.definition(), "error": f.error}
                for f in counts.failed
            ],
            "results": json.loads(summary),
            "flags": flag_table(flags).to_dict("records"),
            "report": str(page) if page else None,
        }
        print_json(answer)
    elif rows is not None:
        click.echo(terminal_table(headline_table(rows)))
        for flag in flags:
            note(f"Flag {flag.name}: {flag.raised_if} ({count(len(flag.subjects), 'line')}).")
        if page is not None:
            click.echo(f"\n{page}")
