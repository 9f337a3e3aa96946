"""`robustdyn bench models`: what skipping saves in time, and what an attack takes back."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from robustdyn.cli.output import columns, note, print_json
from robustdyn.errors import UserError

if TYPE_CHECKING:
    from robustdyn.bench.models import ModelRow


@click.command("models", short_help="Time dynamic models, dense, sparse and under attack.")
@click.argument("names", nargs=-1)
@click.option("--batch", type=click.IntRange(min=1), default=64, show_default=True, help="Samples.")
@click.option("--attack", default="pgd", show_default=True, help="On compute where it can be.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads.  [torch's number]")
@click.option(
    "--rounds", type=click.IntRange(min=1), default=15, show_default=True, help="Measurements."
)
@click.option("--fresh", is_flag=True, help="Take fresh weights where there are no trained ones.")
@click.option("--out", type=click.Path(path_type=Path), help="Write CSV, JSON and a figure there.")
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects.")
def models(
    names: tuple[str, ...],
    batch: int,
    attack: str,
    threads: int | None,
    rounds: int,
    fresh: bool,
    out: Path | None,
    as_json: bool,
) -> int:
    """Time the dynamic models (or families, or patterns) NAMES, by default all, on one batch.

    Theoretical speed-up is dense MACs / mean MACs, realised is dense time / sparse time, measured
    in turn. The slowdown is sparse time of the attacked batch / of the clean one, at L-inf 8/255.

    \b
    robustdyn bench models
    robustdyn bench models skipnet "spatial.*" --threads 1 --out bench
    robustdyn bench models sdn_resnet --attack autoslow --json
    """
    from robustdyn.attacks import get
    from robustdyn.bench.losers import losers
    from robustdyn.bench.models import chosen_models, trained_dataset
    from robustdyn.folders import make_writable

    specs = chosen_models(names)
    get(attack)  # an unknown one is no failure of a model
    if out is not None:
        make_writable(out, "Results")
    skipped = [s.name for s in specs if not fresh and trained_dataset(s) is None]
    specs = [spec for spec in specs if spec.name not in skipped]
    if skipped:
        note(f"Without trained weights, left out (see --fresh): {', '.join(skipped)}")
    options = {"batch": batch, "attack": attack, "thread_count": threads, "rounds": rounds}
    rows, failed = _measure(specs, options)
    if out is not None and rows:
        _save(rows, {"skipped": skipped, "failed": failed, "losers": losers(rows)}, out)
    if as_json:
        print_json([asdict(row) for row in rows])
    elif rows:
        click.echo(_table(rows))
    for line in losers(rows):
        note(f"Falls short: {line}")
    for name, error in failed.items():
        note(f"Failed: {name}: {error}")
    return 1 if failed else 0


def _measure(specs: list[Any], options: dict[str, Any]) -> tuple[list["ModelRow"], dict[str, str]]:
    """Measure one model after the other; one that fails is told, the others go on."""
    from tqdm import tqdm

    from robustdyn.bench.models import bench_model

    rows, failed = [], {}
    for spec in tqdm(specs, unit=" models", file=sys.stderr, disable=not sys.stderr.isatty()):
        try:
            rows.append(bench_model(spec, **options))
        except Exception as error:
            told = error.message if isinstance(error, UserError) else repr(error)
            failed[spec.name] = told
    return rows, failed


def _save(rows: list["ModelRow"], more: dict[str, Any], out: Path) -> None:
    from pandas import DataFrame

    from robustdyn.bench.saving import save
    from robustdyn.reports.realised_speedup import realised_speedup

    table = [asdict(row) for row in rows]
    save(table, realised_speedup(DataFrame(table)), out, "models", more)
    note(f"{out / 'models.csv'}, .json, .png, .svg")


def _table(rows: list["ModelRow"]) -> str:
    heads = "model MACs dense_ms sparse_ms by_MACs by_time part slowdown of_MACs kernels"
    lines = [tuple(head.replace("_", " ") for head in heads.split())]
    for row in rows:
        lines.append(
            (
                row.model + ("" if row.trained else " (fresh)"),
                f"{row.macs / row.dense_macs:.0%} of {row.dense_macs / 1e6:.1f} M",
                f"{row.dense_seconds * 1e3:.1f}",
                f"{row.sparse_seconds * 1e3:.1f}",
                f"{row.theoretical:.2f}",
                f"{row.realised:.2f} [{row.realised_low:.2f}, {row.realised_high:.2f}]",
                f"{row.realised / row.theoretical:.0%}",
                f"{row.slowdown:.2f} [{row.slowdown_low:.2f}, {row.slowdown_high:.2f}]",
                f"{row.macs_ratio:.2f}",
                ", ".join(row.kernels),
            )
        )
    return columns(lines)
