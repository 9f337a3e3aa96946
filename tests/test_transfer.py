"""Transfer: crafted on one model, judged on all, and the matrix of it."""

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


def test_rows_of_evaluate_and_transfer_make_one_report(rows, data, tmp_path):
    own = rd.evaluate(zoo.model("skipnet"), data, **PGD)
    both = pd.concat([own, rows], ignore_index=True)
    reports.write_report(both, tmp_path, title="transfer", about={})
    assert (tmp_path / "figures" / "transfer_matrix.png").is_file()
