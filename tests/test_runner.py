"""The runner: resume, failures, dying workers, and the same rows whatever happens on the way."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from joblib.externals.loky import get_reusable_executor
from pandas.testing import assert_frame_equal
from synthetic_rows import KINDS, cell_rows

from robustdyn import evaluation
from robustdyn import suite as suite_module
from robustdyn.errors import UserError
from robustdyn.interrupts import heeded
from robustdyn.registry import create_model, get_model_spec
from robustdyn.results import cell_path, load_metadata, load_results
from robustdyn.runner import missing_cells, prepare, run
from robustdyn.suite import cells
from robustdyn.suites.parse import parse_suite
from robustdyn.weights import find_weights, save_weights

MODELS = ("sdn_resnet", "skip_rnn")


def small_suite(**changes):
    return parse_suite(
        {
            "name": "small",
            "models": list(MODELS),
            "samples": 6,
            "samples_per_cell": 3,
            "attacks": [
                {"attack": "clean"},
                {"attack": "pgd", "objective": "compute", "eps": [0.02, 0.05], "steps": 2},
            ],
        }
        | changes
    )


@pytest.fixture
def evaluated(monkeypatch):
    """The ids of the cells that were evaluated, by a stand-in for the real evaluation."""
    seen = []

    def evaluate_cell(cell, *, batch_size, progress):
        seen.append(cell.id)
        if progress is not None:
            progress(cell.samples)
        table = cell_rows(
            cell.model, KINDS[cell.model], cell.attack, cell.objective, n=cell.samples
        )
        return table.drop(columns="cell").assign(**({"source": cell.source} if cell.source else {}))

    monkeypatch.setattr(evaluation, "evaluate_cell", evaluate_cell)
    monkeypatch.setattr(suite_module, "model_sha256", lambda spec, dataset: "")
    return seen


def test_every_cell_is_evaluated_once_and_named(tmp_path, evaluated):
    counts = run(small_suite(), tmp_path, jobs=1)
    ids = [cell.id for cell in cells(small_suite())]
    assert sorted(evaluated) == sorted(ids)
    assert (counts.done, counts.skipped, counts.failed) == (12, 0, [])
    assert load_results(tmp_path)["cell"].unique().tolist() == ids


def test_what_is_there_is_not_done_again(tmp_path, evaluated):
    run(small_suite(), tmp_path, jobs=1)
    evaluated.clear()
    gone = cells(small_suite())[3]
    cell_path(tmp_path, gone.id).unlink()
    counts = run(small_suite(), tmp_path, jobs=1)
    assert evaluated == [gone.id]
    assert (counts.done, counts.skipped) == (1, 11)


def test_long_cells_come_first(tmp_path, evaluated):
    run(small_suite(), tmp_path, jobs=1)
    attacks = {cell.id: cell.attack for cell in cells(small_suite())}
    assert [attacks[name] for name in evaluated] == ["pgd"] * 8 + ["clean"] * 4


def test_progress_counts_samples(tmp_path, evaluated):
    ticks = []
    run(small_suite(), tmp_path, jobs=1, progress=ticks.append)
    assert sum(ticks) == 2 * 6 * 3


def test_the_metadata_say_how_a_cell_was_made(tmp_path, evaluated):
    run(small_suite(), tmp_path, jobs=1)
    made = {cell.id: cell for cell in cells(small_suite())}
    for metadata in load_metadata(tmp_path):
        assert metadata["definition"] == made[metadata["id"]].definition()
        assert metadata["torch_threads"] == 1
        assert {"robustdyn", "torch", "numpy", "python", "revision", "created"} <= set(metadata)


def test_threads_are_given_back(tmp_path, evaluated):
    before = torch.get_num_threads()
    run(small_suite(), tmp_path, jobs=1)
    assert torch.get_num_threads() == before


def test_cells_of_another_suite_stay_and_are_no_results(tmp_path, evaluated):
    run(small_suite(), tmp_path, jobs=1)
    run(small_suite(seed=5), tmp_path, jobs=1)
    assert len(list(tmp_path.glob("cells/*.parquet"))) == 24
    assert {m["definition"]["seed"] for m in load_metadata(tmp_path)} == {5}
    evaluated.clear()
    run(small_suite(), tmp_path, jobs=1)
    assert evaluated == []


def test_a_failed_cell_is_recorded_and_the_rest_goes_on(tmp_path, evaluated, monkeypatch):
    works = evaluation.evaluate_cell
    bad = cells(small_suite())[2].id

    def fails_once(cell, **arguments):
        if cell.id == bad:
            raise ZeroDivisionError("by zero")
        return works(cell, **arguments)

    monkeypatch.setattr(evaluation, "evaluate_cell", fails_once)
    counts = run(small_suite(), tmp_path, jobs=1)
    assert counts.done == 11
    assert [(f.cell.id, f.error) for f in counts.failed] == [(bad, "ZeroDivisionError: by zero")]
    record = json.loads((tmp_path / "failed" / f"{bad}.json").read_text())
    assert record["definition"]["model"] == "sdn_resnet"
    assert "fails_once" in record["traceback"]

    monkeypatch.setattr(evaluation, "evaluate_cell", works)
    counts = run(small_suite(), tmp_path, jobs=1)
    assert (counts.done, counts.skipped, counts.failed) == (1, 11, [])
    assert not list((tmp_path / "failed").iterdir())


def test_a_cell_with_a_source_fails_and_goes_on_like_any(tmp_path, evaluated, monkeypatch):
    works = evaluation.evaluate_cell
    clean, pgd = ({"attack": "clean"}, {"attack": "pgd", "objective": "compute", "eps": 0.02})
    suite = small_suite(attacks=[clean, pgd | {"sources": list(MODELS)}])
    bad = next(cell for cell in cells(suite) if cell.source == "skip_rnn")

    def fails_once(cell, **arguments):
        if cell.id == bad.id:
            raise ZeroDivisionError("by zero")
        return works(cell, **arguments)

    monkeypatch.setattr(evaluation, "evaluate_cell", fails_once)
    counts = run(suite, tmp_path, jobs=1)
    assert (counts.done, len(counts.failed)) == (7, 1)
    record = json.loads((tmp_path / "failed" / f"{bad.id}.json").read_text())
    assert record["definition"]["source"] == "skip_rnn"
    monkeypatch.setattr(evaluation, "evaluate_cell", works)
    counts = run(suite, tmp_path, jobs=1)
    assert (counts.done, counts.skipped, counts.failed) == (1, 7, [])
    assert load_results(tmp_path)["source"].notna().sum() == 12


def test_an_interrupt_keeps_what_is_finished(tmp_path, evaluated, monkeypatch):
    works = evaluation.evaluate_cell

    def interrupted(cell, **arguments):
        if len(evaluated) == 4:
            raise KeyboardInterrupt
        return works(cell, **arguments)

    monkeypatch.setattr(evaluation, "evaluate_cell", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(small_suite(), tmp_path, jobs=1)
    assert len(list(tmp_path.glob("cells/*.parquet"))) == 4
    assert not list((tmp_path / "failed").iterdir())


def test_leftovers_of_killed_runs_go_and_young_ones_stay(tmp_path):
    prepare(tmp_path)
    (tmp_path / "suite.json").write_text("{}")
    old, young = tmp_path / "cells" / "a.1.partial", tmp_path / "cells" / "b.2.partial"
    old.touch()
    young.touch()
    os.utime(old, (time.time() - 3600,) * 2)
    prepare(tmp_path)
    assert [path.name for path in (tmp_path / "cells").iterdir()] == [young.name]


def test_folders_that_are_no_run_are_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="other files"):
        prepare(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(UserError, match="cannot be written"):
        prepare(tmp_path / "thesis.txt")
    with pytest.raises(UserError, match="cannot be written"):
        prepare(tmp_path / "thesis.txt" / "run")


# From here on, the real thing.


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """ROBUSTDYN_HOME with weights of MODELS: the trained ones, else fresh ones."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROBUSTDYN_HOME", str(folder))
        for name in MODELS:
            dataset = get_model_spec(name).datasets[0]
            if find_weights(name, dataset) is None:
                with torch.random.fork_rng():
                    torch.manual_seed(0)
                    model = create_model(name, dataset, pretrained=False)
                save_weights(model, folder / "weights" / f"{name}.{dataset}.safetensors")
        get_reusable_executor().shutdown()  # workers of earlier tests have another environment
        yield folder


@pytest.fixture(scope="module")
def undisturbed(home, tmp_path_factory):
    """The run folder of small_suite(), run in one go."""
    out = tmp_path_factory.mktemp("undisturbed")
    counts = run(small_suite(), out, jobs=1)
    assert not counts.failed
    return out


def test_resumed_rows_are_the_same(undisturbed, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(undisturbed, out)
    for path in sorted(out.glob("cells/*.parquet"))[:5]:
        path.unlink()
    assert run(small_suite(), out, jobs=1).done == 5
    assert_frame_equal(load_results(out), load_results(undisturbed), check_exact=True)


def test_batch_size_changes_no_bit(undisturbed, tmp_path):
    run(small_suite(batch_size=2), tmp_path, jobs=1)
    assert_frame_equal(load_results(tmp_path), load_results(undisturbed), check_exact=True)


def _heed_interrupts() -> None:
    """As in a terminal: a test run in the background inherits that interrupts are ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(out: Path, *options: str) -> subprocess.Popen:
    """Start the command line in a process group of its own; wait until a cell is finished."""
    suite = out.parent / "small.toml"
    tables = small_suite()
    lines = [f"models = {json.dumps(tables.models)}", "samples = 6", "samples_per_cell = 3"]
    for entry in tables.attacks:
        lines += ["[[attacks]]", f"attack = '{entry.attack}'"]
        if entry.objective:
            lines += [
                f"objective = '{entry.objective}'",
                f"eps = {json.dumps(entry.eps)}",
                "steps = 2",
            ]
    suite.write_text("\n".join(lines))
    command = [sys.executable, "-m", "robustdyn", "run", str(suite), "--out", str(out), *options]
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=_heed_interrupts,
    )
    while process.poll() is None and not list(out.glob("cells/*.parquet")):
        time.sleep(0.02)
    return process


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_killed_run_goes_on_with_the_same_rows(home, undisturbed, tmp_path, jobs):
    out = tmp_path / "run"
    process = start(out, "--jobs", jobs, "--no-report")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    finished = len(list(out.glob("cells/*.parquet")))
    assert finished
    counts = run(small_suite(batch_size=3), out, jobs=3 - int(jobs))
    assert (counts.skipped, counts.done, counts.failed) == (finished, 12 - finished, [])
    assert_frame_equal(load_results(out), load_results(undisturbed), check_exact=True)


@pytest.mark.parametrize(("jobs", "stop"), [("2", signal.SIGINT), ("1", signal.SIGTERM)])
def test_an_interrupted_run_exits_with_130(home, tmp_path, jobs, stop):
    process = start(tmp_path / "run", "--jobs", jobs, "--no-report", "--set", "samples=300")
    os.killpg(process.pid, stop)  # as a terminal does
    assert process.wait() == 130
    assert list((tmp_path / "run").glob("cells/*.parquet"))
    assert missing_cells(cells(small_suite(samples=300)), tmp_path / "run")


@pytest.mark.parametrize("swallow", ["as an error", "whole"])
def test_an_interrupt_that_a_library_swallows_ends_the_run(
    home, evaluated, monkeypatch, tmp_path, swallow
):
    stand_in = evaluation.evaluate_cell

    def evaluate_cell(cell, **options):
        if len(evaluated) == 1:
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(10)
            except KeyboardInterrupt:
                if swallow == "as an error":  # as safetensors does
                    raise ValueError("could not determine the shape") from None
        return stand_in(cell, **options)

    monkeypatch.setattr(evaluation, "evaluate_cell", evaluate_cell)
    out = tmp_path / "run"
    with heeded(), pytest.raises(KeyboardInterrupt):
        run(small_suite(), out, jobs=1)
    finished = 1 if swallow == "as an error" else 2
    assert len(list(out.glob("cells/*.parquet"))) == finished
    assert not list(out.glob("failed/*"))
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    monkeypatch.setattr(evaluation, "evaluate_cell", stand_in)
    assert run(small_suite(), out, jobs=1).skipped == finished
