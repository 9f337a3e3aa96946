"""From a suite to result files: runs the cells that are missing, on all cores.

A worker writes its cells itself; the driver only counts. So whatever happens to a run, the cells
that are finished stay, and the next run goes on from there.
"""

import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from joblib import cpu_count

from robustdyn import evaluation
from robustdyn.checks import find_flags
from robustdyn.errors import UserError
from robustdyn.folders import make_writable, write_json
from robustdyn.interrupts import raise_if_interrupted
from robustdyn.pool import stream
from robustdyn.provenance import provenance
from robustdyn.results import (
    cell_path,
    failure_path,
    is_run_folder,
    save_plan,
    write_cell,
)
from robustdyn.suite import Cell, Suite, cells

Progress = Callable[[int], None]
_STALE = 60.0  # seconds; a younger temporary file may belong to a run that is alive


@dataclass(frozen=True)
class Failure:
    """A cell that could not be evaluated, and why."""

    cell: Cell
    error: str


@dataclass
class Counts:
    """What became of a suite's cells: had results before, were done now, failed."""

    skipped: int = 0
    done: int = 0
    failed: list[Failure] = field(default_factory=list)


def missing_cells(every: Sequence[Cell], out: Path) -> list[Cell]:
    """Return those of the cells that have no results in the run folder `out`."""
    return [cell for cell in every if not cell_path(out, cell.id).is_file()]


def run(
    suite: Suite, out: Path, *, jobs: int | None = None, progress: Progress | None = None
) -> Counts:
    """Evaluate the cells of `suite` that have no results in the run folder `out`.

    Args:
        jobs: worker processes, by default one per core; 1 runs in this process.
        progress: called with the number of samples finished since the last call.

    Raises:
        UserError: if the suite is wrong or the folder is no place for results, before any work.
        KeyboardInterrupt: if one came; what is finished stays.
    """
    every = cells(suite)
    prepare(out)
    save_plan(suite.to_dict(), [cell.id for cell in every], out)
    missing = sorted(missing_cells(every, out), key=_effort, reverse=True)  # the longest first
    counts = Counts(skipped=len(every) - len(missing))
    for cell, error in _outcomes(missing, out, suite.batch_size, jobs or cpu_count(), progress):
        if error:
            counts.failed.append(Failure(cell, error))
        else:
            counts.done += 1
        raise_if_interrupted()
    return counts


def prepare(out: Path) -> None:
    """Make the run folder, and clear what killed runs left in it.

    Raises:
        UserError: if it cannot be written, or holds something else than a run.
    """
    if out.is_dir() and not is_run_folder(out) and any(out.iterdir()):
        raise UserError(
            f"The folder '{out}' holds other files and no run.",
            "Choose a new folder with --out; nothing was written.",
        )
    for folder in (out / "cells", out / "failed"):
        make_writable(folder, "Results")
    for partial in (*out.glob("*.partial"), *out.glob("*/*.partial")):
        if time.time() - partial.stat().st_mtime > _STALE:
            partial.unlink(missing_ok=True)


def _effort(cell: Cell) -> int:
    params = dict(cell.attack_params)
    passes = [value for key in ("steps", "restarts") if isinstance(value := params.get(key), int)]
    effort = cell.samples
    for number in passes:
        effort *= max(number, 1)
    return effort


def _outcomes(
    missing: Sequence[Cell], out: Path, batch_size: int, jobs: int, progress: Progress | None
) -> Iterator[tuple[Cell, str]]:
    """Work on the cells; yield each with its error, "" if there was none, as they end."""
    if jobs == 1 or len(missing) <= 1:
        for cell in missing:
            yield cell, work(cell, out, batch_size, progress)
        return
    by_id = {cell.id: cell for cell in missing}
    tasks = {cell.id: (cell, out, batch_size) for cell in missing}
    for name, result in stream(work, tasks, jobs=jobs, scratch=out / "cells"):
        cell = by_id[name]
        if isinstance(result, BaseException):  # its process is gone, so it wrote no record
            result = fail(cell, out, str(result), "")
        if progress is not None:
            progress(cell.samples)
        yield cell, result


def work(cell: Cell, out: Path, batch_size: int, progress: Progress | None = None) -> str:
    """Evaluate one cell on one thread and write its results; return "".

    If that fails, write a record of the failure instead and return the error.
    """
    started, threads = time.monotonic(), torch.get_num_threads()
    torch.set_num_threads(1)  # so that the number of jobs cannot change a number
    try:
        rows = evaluation.evaluate_cell(cell, batch_size=batch_size, progress=progress)
        metadata = provenance() | {
            "id": cell.id,
            "definition": cell.definition(),
            "device": "cpu",
            "torch_threads": torch.get_num_threads(),
            "seconds": round(time.monotonic() - started, 3),
            "flags": [flag.name for flag in find_flags(rows)],
        }
        write_cell(rows.assign(cell=cell.id), cell_path(out, cell.id), metadata)
    except Exception as error:  # the others go on, and the end lists this one
        raise_if_interrupted()
        told = error.message if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        return fail(cell, out, told, traceback.format_exc())
    finally:
        torch.set_num_threads(threads)
    failure_path(out, cell.id).unlink(missing_ok=True)
    return ""


def fail(cell: Cell, out: Path, error: str, trace: str) -> str:
    """Record that a cell failed; return the error."""
    record = {"id": cell.id, "definition": cell.definition(), "error": error, "traceback": trace}
    write_json(record, failure_path(out, cell.id))
    return error
