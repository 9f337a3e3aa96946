"""Evaluation: one honest row per sample, whatever the attack says and however it is batched."""

import pandas as pd
import pytest
import torch
import zoo
from torch import nn

import robustdyn as rd
from robustdyn import attacks
from robustdyn.attacks import registry

THREAT = rd.Threat("linf", 8 / 255)
COLUMNS = [
    *("model", "family", "static", "dataset", "split", "attack", "objective", "estimator"),
    *("norm", "eps", "seed", "params", "fitted_on", "uses_gradient"),
    *("sample_id", "label", "clean_pred", "adv_pred", "clean_macs", "adv_macs", "max_macs"),
    *("clean_bit_operations", "adv_bit_operations", "max_bit_operations"),
    *("clean_expected_macs", "adv_expected_macs", "linf", "l2", "valid", "clean_exit", "adv_exit"),
    *("gate_names", "gate_kinds", "clean_gates", "adv_gates", "image", "adv_image", "image_shape"),
    *("clean_map", "adv_map", "map_shape", "gate_gradient", "loss_gradient", "repeatable"),
    "still_rising",
]


def evaluate(name, count=10, **arguments):
    model = zoo.model(name)
    data = rd.load_dataset(model.dataset, "test").subset(range(count))
    return rd.evaluate(model, data, threat=THREAT, **arguments)


@pytest.mark.parametrize("name", zoo.NAMES)
def test_one_true_row_per_sample(name):
    rows = evaluate(name, attack="pgd", objective="compute", steps=2)
    assert list(rows.columns) == COLUMNS
    assert rows.valid.all()
    assert (rows.linf <= THREAT.eps + 1e-6).all()
    assert (rows.adv_macs <= rows.max_macs).all()
    model = zoo.model(name)
    data = rd.load_dataset(model.dataset, "test").subset(range(10))
    assert rows.sample_id.tolist() == data.sample_ids.tolist()
    assert rows.label.tolist() == data.labels.tolist()
    for k, row in rows.iterrows():
        with torch.no_grad(), rd.trace() as trace:
            logits = model(data[k][0][None])
        assert row.clean_pred == logits.argmax(1).item()
        assert row.clean_macs == pytest.approx(trace.macs().item())
        assert row.gate_names == list(trace.decisions)
        assert len(row.gate_names) == len(row.clean_gates) == len(row.adv_gates)


@pytest.mark.parametrize("name", zoo.STATIC)
@pytest.mark.parametrize("attack", ["noise", "pgd", "torchattacks:PGD", "foolbox:LinfPGD"])
def test_a_static_model_never_costs_more(name, attack):
    params = {"steps": 2} if "PGD" in attack or attack == "pgd" else {}
    rows = evaluate(name, attack=attack, **params)
    assert (rows.adv_macs == rows.clean_macs).all()
    assert rd.metrics.amplification(rows).tolist() == [1.0] * len(rows)


@pytest.mark.parametrize("name", [*zoo.KINDS, zoo.STATIC[0]])
@pytest.mark.parametrize("attack", ["pgd", "torchattacks:PGD"])
def test_batch_size_does_not_change_a_bit(name, attack):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        parts = [evaluate(name, 40, attack=attack, steps=2, batch_size=b) for b in (40, 16, 5, 1)]
    finally:
        torch.set_num_threads(before)
    for other in parts[1:]:
        pd.testing.assert_frame_equal(parts[0], other, check_exact=True)


def test_seed_decides_the_random_start():
    first, again, other = (evaluate("resnet", attack="noise", seed=s) for s in (0, 0, 1))
    pd.testing.assert_frame_equal(first, again)
    assert (first.l2 != other.l2).any()


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr(registry, "_ATTACKS", dict(registry._ATTACKS))


@pytest.mark.parametrize(
    "lie",
    [
        lambda x: x + 0.1,
        lambda x: x * float("nan"),
        lambda x: x.clamp(min=0.001) * 1e9,
    ],
)
def test_an_attack_that_leaves_its_threat_is_found_out(registered, lie):
    @attacks.register_attack()
    def liar(model, x, y, *, threat, objective, seeds):
        return lie(x)

    assert not evaluate("resnet", attack="liar").valid.any()


def test_a_model_that_returns_a_tuple_is_answered():
    class Tuple(nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :10], {"gates": 1}

    data = rd.load_dataset("fashion_mnist", "test").subset(range(2))
    with pytest.raises(rd.UserError, match="returned a tuple"):
        rd.evaluate(Tuple(), data, attack="clean", threat=THREAT)


def test_any_module_can_be_evaluated():
    class Plain(nn.Sequential):
        pass

    model = Plain(nn.Flatten(), nn.Linear(784, 10)).train()
    data = rd.load_dataset("fashion_mnist", "test").subset(range(3))
    rows = rd.evaluate(model, data, attack="noise", threat=THREAT)
    assert rows.model.tolist() == ["Plain"] * 3
    assert rows.clean_macs.tolist() == [7840.0] * 3
    assert model.training


def test_spatial_models_come_with_maps():
    name = next(s.name for s in rd.list_models("spatial.*"))
    rows = evaluate(name, attack="noise")
    mapped = rows[rows.clean_map.notna()]
    assert len(mapped) == 8
    row = mapped.iloc[0]
    assert row.map_shape == row.image_shape[1:] == [28, 28]
    assert len(row.clean_map) == len(row.image) == len(row.adv_image) == 784
    with torch.no_grad(), rd.trace() as trace:
        zoo.model(name)(torch.tensor(row.image).reshape(1, 1, 28, 28))
    masks = [
        torch.nn.functional.interpolate(d.kept.float(), (28, 28))
        for d in trace.decisions.values()
        if d.kind == "position"
    ]
    torch.testing.assert_close(torch.tensor(row.clean_map), torch.cat(masks, 1).mean(1).flatten())


def test_progress_counts_every_sample():
    seen = []
    evaluate("resnet", 10, attack="noise", batch_size=4, progress=seen.append)
    assert seen == [4, 4, 2]


def test_unknown_names_are_answered():
    with pytest.raises(rd.UserError, match="Did you mean 'pgd'"):
        evaluate("resnet", attack="pg")
    with pytest.raises(rd.UserError, match="Did you mean 'steps'"):
        evaluate("resnet", attack="pgd", step=1)


def test_a_function_can_be_the_objective():
    def darkness(logits, y, trace):
        return -logits.logsumexp(1)

    rows = evaluate("resnet", 4, attack="pgd", objective=darkness, steps=1)
    assert set(rows.objective) == {"darkness"}
    assert rows.valid.all()
