"""`robustdyn bench kernels`: masked kernels against torch's dense operations."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from robustdyn.cli.output import columns, note, print_json

if TYPE_CHECKING:
    from robustdyn.bench.kernels import KernelRow


@click.command("kernels", short_help="Time masked kernels against dense operations.")
@click.argument("names", nargs=-1)
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads.  [torch's number]")
@click.option("--rounds", type=click.IntRange(min=1), help="Measurements of each.  [15, quick: 5]")
@click.option("--quick", is_flag=True, help="Random masks only, with 25 % and all active.")
@click.option("--out", type=click.Path(path_type=Path), help="Write CSV, JSON and a figure there.")
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects.")
def kernels(
    names: tuple[str, ...],
    device: str,
    threads: int | None,
    rounds: int | None,
    quick: bool,
    out: Path | None,
    as_json: bool,
) -> None:
    """Time the kernels (or cases, or patterns of them) NAMES, by default all.

    Every implementation that takes the inputs is measured in turn with torch's dense operation.
    Efficiency is the active part of the work / (time / dense time): 1 if skipped work is saved
    time in full.

    \b
    robustdyn bench kernels --quick
    robustdyn bench kernels masked_conv2d --threads 1 --out bench
    robustdyn bench kernels "conv 64" --rounds 30 --json
    """
    from tqdm import tqdm

    from robustdyn.bench.kernels import bench_kernels
    from robustdyn.folders import make_writable

    if out is not None:
        make_writable(out, "Results")
    with tqdm(unit=" inputs", file=sys.stderr, disable=not sys.stderr.isatty()) as bar:

        def show(done: int, count: int) -> None:
            bar.total = count
            bar.update(done - bar.n)

        rows = bench_kernels(
            names,
            device=device,
            thread_count=threads,
            rounds=rounds or (5 if quick else 15),
            quick=quick,
            progress=show,
        )
    if out is not None:
        _save(rows, out)
    if as_json:
        print_json([asdict(row) for row in rows])
    else:
        click.echo(_table(rows))
    if not all(row.steady for row in rows):
        note("* The machine was busy: dense times stray beyond 1.5 times their minimum.")


def _save(rows: list["KernelRow"], out: Path) -> None:
    from pandas import DataFrame

    from robustdyn.bench.saving import save
    from robustdyn.reports.kernel_efficiency import kernel_efficiency

    table = [asdict(row) for row in rows]
    save(table, kernel_efficiency(DataFrame(table)), out, "kernels")
    note(f"{out / 'kernels.csv'}, .json, .png, .svg")


def _table(rows: list["KernelRow"]) -> str:
    lines = [("case", "runs", "mask", "active", "ms", "dense ms", "efficiency", "quartiles")]
    for row in rows:
        bound = "" if row.ceiling is None else f"  of at most {row.ceiling:.2f}"
        lines.append(
            (
                row.case,
                row.implementation + (" (chosen)" if row.dispatched else ""),
                row.mask,
                f"{row.active:.1%}",
                f"{row.seconds * 1e3:.3f}",
                f"{row.dense_seconds * 1e3:.3f}",
                f"{row.efficiency:.2f}{'' if row.steady else ' *'}",
                f"{row.efficiency_low:.2f} to {row.efficiency_high:.2f}{bound}",
            )
        )
    return columns(lines)
