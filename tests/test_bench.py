"""`robustdyn bench`: what is measured, what is printed and written; no assertion about speed."""

import json
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch

from robustdyn.bench import models as bench_models
from robustdyn.bench.breakdown import break_down
from robustdyn.bench.cases import ACTIVE, Draw, cases
from robustdyn.bench.losers import losers, reason, shortfall
from robustdyn.bench.masks import blocky_mask, random_mask
from robustdyn.bench.timing import LEAST, STEADY, interleaved, spread, take_turns
from robustdyn.cli import main
from robustdyn.kernels import KERNELS
from robustdyn.registry import get_model_spec

KEYS = {"kernel", "implementation", "device", "dtype", "shape", "mask", "active"}
KEYS |= {"seconds", "dense_seconds", "efficiency"}


@pytest.fixture
def robustdyn(monkeypatch, tmp_path, capsys):
    """Run a command line in an empty folder; return its exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return ended.value.code, printed.out, printed.err

    return call


@pytest.fixture(scope="module")
def row():
    return bench_models.bench_model(get_model_spec("skip_rnn"), batch=4, rounds=1, thread_count=1)


def test_every_call_takes_its_turn():
    order = []

    def call(name):
        order.append(name)
        time.sleep(2 * LEAST)  # so that it is not repeated

    calls = {name: partial(call, name) for name in "abc"}
    seconds = take_turns(calls, rounds=3)
    assert "".join(order[6:]) == "abcbcacab"  # after two rounds to warm up
    assert {name: len(times) for name, times in seconds.items()} == dict.fromkeys("abc", 3)


def test_a_steady_measurement_begins_with_a_call_that_is_not_timed():
    order = []

    def call(name):
        order.append(name)
        time.sleep(2 * STEADY if len(order) <= 4 else 0)

    seconds = take_turns({name: partial(call, name) for name in "ab"}, rounds=2, steady=True)
    assert "".join(order[4:]) == "aabbbbaa"
    assert all(len(times) == 2 for times in seconds.values())


def test_one_round_has_a_spread():
    assert spread([3.0]) == (3.0, 3.0, 3.0)
    ratio = interleaved(lambda: None, lambda: None, rounds=1)["ratio"]
    assert set(ratio) == {"median", "low_quartile", "high_quartile"}


@pytest.mark.parametrize("active", ACTIVE)
def test_masks_have_the_stated_part(active):
    draw = torch.Generator().manual_seed(0)
    assert random_mask((2, 14, 14), active, draw).double().mean() == pytest.approx(active, abs=0.01)
    blocky = blocky_mask((8, 15, 14), active, draw)
    assert blocky.shape == (8, 15, 14)
    assert blocky[:, :7, :7].flatten(1).double().std(1).max() == 0  # whole blocks


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
@torch.no_grad()
def test_every_implementation_of_a_case_does_the_same(case):
    assert case.kernel in KERNELS
    made = case.make(0.25, Draw("cpu", torch.Generator().manual_seed(0), blocky=False))
    assert made.chosen in made.sparse
    assert 0 < made.active < 0.3
    results = [call() for call in made.sparse.values()]
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-3, atol=1e-3)


def test_kernels_as_json_and_as_files(robustdyn):
    code, out, _ = robustdyn(
        *("bench", "kernels", "masked_rnn_step", "entries*", "--quick", "--rounds", 1),
        *("--threads", 1, "--out", "bench", "--json"),
    )
    assert code == 0
    rows = json.loads(out)
    assert {row["kernel"] for row in rows} == {"masked_rnn_step", "entry_masked_conv2d"}
    for row in rows:
        assert row.keys() >= KEYS
        ratio = row["seconds"] / row["dense_seconds"]
        assert row["efficiency"] == pytest.approx(row["active"] / ratio)
    chosen = [row for row in rows if row["dispatched"]]
    assert len(chosen) == 4  # two cases, two parts
    assert_files_hold(rows, "kernels")


def assert_files_hold(rows, name):
    for kind in ("png", "svg"):
        assert Path(f"bench/{name}.{kind}").stat().st_size > 5000
    assert len(pd.read_csv(f"bench/{name}.csv")) == len(rows)
    told = json.loads(Path(f"bench/{name}.json").read_text())
    assert told["rows"] == rows
    assert told["caption"]
    assert told["machine"]["torch"]


def test_kernels_as_a_table(robustdyn):
    code, out, _ = robustdyn("bench", "kernels", "step", "--quick", "--rounds", 1)
    assert code == 0
    assert out.splitlines()[0].split()[:3] == ["case", "runs", "mask"]
    assert "(chosen)" in out


def test_models_as_json_and_as_files(robustdyn):
    code, out, _ = robustdyn(
        *("bench", "models", "skip_rnn", "conditional_mlp", "--batch", 4, "--rounds", 1),
        *("--threads", 1, "--out", "bench", "--json"),
    )
    assert code == 0
    rows = json.loads(out)
    assert {row["model"] for row in rows} == {"skip_rnn", "conditional_mlp"}
    for row in rows:
        assert row["theoretical"] == pytest.approx(row["dense_macs"] / row["macs"])
        assert row["attack"] == "pgd compute steps 50"
        assert row["macs_ratio"] >= 1
    assert_files_hold(rows, "models")


def test_a_model_without_weights_is_left_out_and_said(robustdyn, monkeypatch):
    monkeypatch.setattr(bench_models, "find_weights", lambda name, dataset: None)
    code, out, err = robustdyn("bench", "models", "skip_rnn", "--json")
    assert (code, json.loads(out)) == (0, [])
    assert "Without trained weights, left out (see --fresh): skip_rnn" in err


def test_fresh_weights_are_taken_when_asked(robustdyn, monkeypatch):
    monkeypatch.setattr(bench_models, "find_weights", lambda name, dataset: None)
    options = ("--fresh", "--batch", 4, "--rounds", 1, "--attack", "noise")
    code, out, _ = robustdyn("bench", "models", "skip_rnn", *options)
    assert code == 0
    assert "skip_rnn (fresh)" in out


def test_a_model_that_fails_is_told_and_the_others_go_on(robustdyn):
    options = ("--batch", 4, "--rounds", 1, "--attack", "deepsloth")  # needs exits
    code, out, err = robustdyn("bench", "models", "skip_rnn", "branchynet", *options)
    assert code == 1
    assert "Failed: skip_rnn" in err
    assert "branchynet" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("kernels", "masked_con2d"), "Did you mean 'masked_conv2d'?"),
        (("kernels", "--device", "tpu"), "Choose cpu or cuda."),
        (("models", "skipnt"), "Did you mean 'skipnet'?"),
        (("models", "resnet"), "it has nothing to skip."),
        (("models", "skip_rnn", "--attack", "pdg"), "Did you mean 'pgd'?"),
    ],
)
def test_mistakes_are_answered_in_two_lines(robustdyn, arguments, message):
    code, out, err = robustdyn("bench", *arguments)
    lines = err.strip().splitlines()
    assert (code, out) == (2, "")
    assert [line.split(":")[0] for line in lines] == ["Error", "Try"]
    assert message in err


def test_the_factors_explain_the_whole_gap(row):
    factors = shortfall(row)
    gap = row.theoretical / (row.dense_seconds / row.sparse_seconds)
    assert factors.more * factors.slower * factors.around == pytest.approx(gap)
    assert factors.more == pytest.approx(1, rel=1e-6)  # it runs what its decisions ask for
    assert reason(row)


def test_losers_are_those_that_are_slower(row):
    values = asdict(row)
    (line,) = losers([bench_models.ModelRow(**values | {"realised": 0.5})])
    assert line.startswith("skip_rnn: 0.50 times as fast")
    assert losers([bench_models.ModelRow(**values | {"realised": 1.5})]) == []
    large = values | {"realised": 1.5, "theoretical": 3.0, "dense_macs": 3e7}
    assert len(losers([bench_models.ModelRow(**large)])) == 1


@torch.no_grad()
def test_products_are_what_multiplies_and_accumulates():
    x, w = torch.rand(8, 16), torch.rand(16, 4)
    found = break_down({"call": lambda: (x @ w).relu() + 1}, rounds=2)["call"]
    assert (found.macs, found.products) == (8 * 16 * 4, 1)
    assert 0 < found.part <= 1
