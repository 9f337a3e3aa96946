"""Transfer: crafted on one model, judged on all, and the matrix of it."""

import shutil

import numpy as np
import pandas as pd
import pytest
import torch
import zoo
from synthetic_rows import transfer_rows
from torch import nn

import robustdyn as rd
from robustdyn import reports
from robustdyn.attacks import registry
from robustdyn.results import load_metadata, load_results
from robustdyn.runner import run
from robustdyn.suites.parse import parse_suite

MODELS = ["skipnet", "sdn_resnet", "resnet"]
THREAT = rd.Threat("linf", 8 / 255)
PGD = {"attack": "pgd", "objective": "compute", "steps": 3, "threat": THREAT}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data():
    return rd.load_dataset("fashion_mnist", "test").subset(range(20))


@pytest.fixture(scope="module")
def rows(data):
    return rd.transfer([zoo.model(name) for name in MODELS], data, batch_size=7, **PGD)


def test_every_pair_has_every_sample(rows, data):
    pairs = rows.groupby(["source", "model"]).size()
    assert len(pairs) == 9
    assert set(pairs) == {len(data)}
    assert rows.valid.all()
    assert set(rows.attack) == {f"pgd from {name}" for name in MODELS}
    assert set(rows.objective) == {"compute"}


def test_a_model_as_its_own_target_is_evaluate(rows, data):
    own = rd.evaluate(zoo.model("skipnet"), data, **PGD)
    same = rows[(rows.source == "skipnet") & (rows.model == "skipnet")].reset_index(drop=True)
    columns = [c for c in own if c != "attack"]
    pd.testing.assert_frame_equal(same[columns], own[columns], check_exact=True, check_dtype=False)


def test_others_see_what_was_crafted_on_the_source(rows, data):
    x_adv = rd.attacks.get("pgd")(
        zoo.model("skipnet"),
        data.stack(range(len(data))),
        torch.from_numpy(data.labels),
        objective="compute",
        threat=THREAT,
        steps=3,
        seeds=rd.attacks.draws.sample_seeds(0, data.sample_ids),
    )
    with torch.no_grad(), rd.trace() as trace:
        logits = zoo.model("sdn_resnet")(x_adv)
    found = rows[(rows.source == "skipnet") & (rows.model == "sdn_resnet")]
    assert found.adv_macs.tolist() == pytest.approx(trace.macs().tolist())
    assert found.adv_pred.tolist() == logits.argmax(1).tolist()
    assert not found.uses_gradient.any()


def test_each_source_is_attacked_once(data, monkeypatch):
    monkeypatch.setattr(registry, "_ATTACKS", dict(registry._ATTACKS))
    calls = []

    @rd.attacks.register_attack()
    def counted(model, x, y, *, threat, objective, seeds):
        calls.append(type(model).__name__)
        return x

    rd.transfer(["skipnet", "resnet"], data, attack="counted", threat=THREAT, batch_size=20)
    assert sorted(calls) == ["ResNet", "SkipNet"]


def test_mistakes_are_answered(data):
    class Other(nn.Sequential):
        pass

    plain = Other(nn.Flatten(), nn.Linear(784, 10))
    for models, message in (
        (["skipnet"], "at least two"),
        ([plain, plain], "Two of the models"),
        ([zoo.model("skip_rnn"), plain], "made for 'japanese_vowels'"),
        (["skipnet", "resnt"], "Did you mean"),
    ):
        with pytest.raises(rd.UserError, match=message):
            rd.transfer(models, data, **PGD)
    with pytest.raises(rd.UserError, match="Did you mean 'steps'"):
        rd.transfer(["skipnet", plain], data, threat=THREAT, stps=1)


def test_the_matrix_shows_every_pair():
    rows = transfer_rows(n=30)
    figure = reports.get_figure("transfer_matrix").draw(rows)
    panels = [ax for ax in figure.axes if ax.images]
    assert len(panels) == 2
    slow = next(ax for ax in panels if "headroom" in ax.get_title("left"))
    matrix = np.asarray(slow.images[0].get_array())
    names = [tick.get_text() for tick in slow.get_yticklabels()]
    lines = rows[rows["objective"] == "compute"]
    headroom = rd.metrics.headroom_recovered(lines)
    means = headroom.groupby([lines["source"], lines["model"]]).mean()
    for k, source in enumerate(names):
        for j, target in enumerate(names):
            assert matrix[k, j] == pytest.approx(means[source, target], nan_ok=True)


def test_other_sources_than_targets_fill_a_matrix_of_their_own_shape():
    rows = transfer_rows(n=10)
    rows = rows[rows["source"] != "resnet38"]
    figure = reports.get_figure("transfer_matrix").draw(rows[rows["model"] != "skipnet38"])
    ax = next(ax for ax in figure.axes if ax.images)
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["sdn_resnet", "skipnet38"]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["sdn_resnet", "resnet38"]


def test_noise_from_another_model_is_no_transfer_to_show():
    rows = transfer_rows(n=10)
    names = [f"noise from {source}" for source in rows["source"]]
    noise = rows.assign(attack=names, objective="")
    assert not reports.get_figure("transfer_matrix").applies(noise)


def test_the_other_figures_show_what_was_crafted_on_the_model_itself(rows):
    for spec in reports.list_figures():
        elsewhere = rows[rows["source"] != rows["model"]]
        assert spec.applies(elsewhere) == (spec.name == "transfer_matrix")
    figure = reports.get_figure("headroom_bars").draw(rows)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["pgd compute"]
    assert "transfer" not in figure.caption


def test_the_worst_case_has_no_source(rows):
    worst = rd.metrics.worst_case(rows)
    assert set(worst["source"]) == {""}
    assert len(worst) == 3 * 20


def transfer_suite(**changes):
    """The suite whose rows are those of the fixture `rows`."""
    attack = {"attack": "pgd", "objective": "compute", "eps": "8/255", "steps": 3}
    suite = {"name": "tiny", "models": MODELS, "samples": 20, "batch_size": 20}
    return parse_suite(suite | {"attacks": [attack | {"sources": MODELS}]} | changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The run folder of transfer_suite()."""
    out = tmp_path_factory.mktemp("run")
    assert not run(transfer_suite(), out, jobs=1).failed
    return out


def in_order(rows):
    return rows.sort_values(["source", "model", "sample_id"]).reset_index(drop=True)


def test_cells_hold_the_rows_of_transfer(rows, finished):
    stored = load_results(finished)
    assert set(stored) == {*rows, "cell"}
    assert stored["cell"].nunique() == 9
    columns = [name for name in rows if name not in ("gate_names", "gate_kinds")]
    pd.testing.assert_frame_equal(
        in_order(stored)[columns], in_order(rows)[columns], check_exact=True, check_dtype=False
    )
    definitions = [metadata["definition"] for metadata in load_metadata(finished)]
    assert {d["source"] for d in definitions} == set(MODELS)
    assert all(len(d["source_weights"]) == 64 for d in definitions)


def test_cells_with_and_without_a_source_make_one_run(finished, tmp_path):
    plain = {"attack": "pgd", "objective": "compute", "eps": "8/255", "steps": 3}
    attacks = [plain, plain | {"sources": ["skipnet"]}]
    shutil.copytree(finished, tmp_path / "run")
    suite = transfer_suite(models=["skipnet", "sdn_resnet"], attacks=attacks)
    counts = run(suite, tmp_path / "run", jobs=1)
    assert (counts.done, counts.skipped) == (2, 2)  # those with a source are there

    stored = load_results(tmp_path / "run")
    assert stored["source"].isna().sum() == 40
    table = reports.headline_table(stored)
    attacks = set(table.loc[table["Model"] == "sdn_resnet", "Attack"])
    assert attacks == {"pgd compute", "pgd compute from skipnet", "worst case"}
    assert not rd.checks.find_flags(stored)
    page = reports.write_report(stored, tmp_path / "report", title="t", about={})
    assert "2 attacks" not in page.read_text()  # one, crafted here and there
    assert (tmp_path / "report" / "figures" / "transfer_matrix.png").is_file()


def test_rows_of_evaluate_and_transfer_make_one_report(rows, data, tmp_path):
    own = rd.evaluate(zoo.model("skipnet"), data, **PGD)
    both = pd.concat([own, rows], ignore_index=True)
    reports.write_report(both, tmp_path, title="transfer", about={})
    assert (tmp_path / "figures" / "transfer_matrix.png").is_file()
