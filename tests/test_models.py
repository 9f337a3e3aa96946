"""The three oracles, and what every registered model must keep, over the whole registry."""

import json
import re
import time
from pathlib import Path

import pytest
import torch
import zoo
from torch.utils.flop_counter import FlopCounterMode

import robustdyn as rd
from robustdyn.registry import model_card
from robustdyn.weights import find_weights, sha256

COUNT = 12
EXPLAINED = (Path(__file__).resolve().parent.parent / "docs" / "models.md").read_text()

# What a shipped model must keep on its test split; the compute is of full inference.
LEAST_ACCURACY = dict.fromkeys(zoo.NAMES, 0.90) | {
    **dict.fromkeys(["resnet", "sdn_resnet", "skipnet", "dynconv"], 0.91),
    **dict.fromkeys(["conditional_mlp", "neural_tree"], 0.87),
    "skip_rnn": 0.93,
}
MOST_COMPUTE = dict.fromkeys(zoo.NAMES, 0.7) | dict.fromkeys(
    ["sdn_resnet", "skipnet", "dynconv"], 0.6
)


@pytest.fixture(params=zoo.NAMES)
def name(request):
    return request.param


def _spread(name):
    """Inputs that make the gates decide in many ways: real ones, mixtures and noise."""
    x, _ = zoo.samples(name, COUNT)
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(0))
    return torch.cat([x, 0.5 * x + 0.5 * noise, noise])


@pytest.mark.parametrize("batch", [1, 3, 36])
@torch.no_grad()
def test_dense_logits_equal_sparse_logits(name, batch):
    model = zoo.model(name)
    for x in _spread(name).split(batch):
        dense = model(x)
        with rd.execution("sparse"):
            sparse = model(x)
        torch.testing.assert_close(dense, sparse, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_traced_macs_equal_what_sparse_execution_really_runs(name):
    model, x = zoo.model(name), _spread(name)
    with rd.trace() as trace:
        model(x)
    for sample, macs in zip(x, trace.macs(), strict=True):
        with rd.execution("sparse"), FlopCounterMode(display=False) as counter:
            model(sample[None])
        assert macs.item() == pytest.approx(counter.get_total_flops() / 2, rel=1e-9)


@torch.no_grad()
def test_macs_stay_below_the_maximum_which_full_inference_reaches(name):
    model, x = zoo.model(name), _spread(name)
    with rd.trace() as trace:
        model(x)
    assert (trace.macs() <= trace.max_macs()).all()
    with rd.estimator("full"), rd.trace() as full:
        model(x)
    assert full.macs().tolist() == pytest.approx([trace.max_macs()] * len(x))


def test_every_decision_has_a_gradient(name):
    model, (x, _) = zoo.model(name), zoo.samples(name, COUNT)
    x = x.clone().requires_grad_()
    with rd.trace() as trace:
        model(x)
    expected = trace.expected_macs()
    if model.spec.static_compute:  # it may decide which expert runs, never how many
        assert not expected.requires_grad
        assert expected.tolist() == pytest.approx([trace.max_macs()] * len(x))
    else:
        assert trace.decisions
        (gradient,) = torch.autograd.grad(expected.sum(), x, retain_graph=True)
        assert (gradient.flatten(1).abs().amax(1) > 0).all()
    for decision in trace.decisions.values():
        (gradient,) = torch.autograd.grad(decision.margin.sum(), x, retain_graph=True)
        assert gradient.isfinite().all()
        assert gradient.abs().max() > 0, decision.name


@torch.no_grad()
def test_a_sample_does_not_depend_on_its_batch(name):
    model, x = zoo.model(name), _spread(name)
    if model.spec.batch_coupled:
        pytest.skip("declared batch-coupled")
    with rd.trace() as together:
        logits = model(x)
    for k in range(len(x)):
        with rd.trace() as alone:
            single = model(x[k : k + 1])
        torch.testing.assert_close(single[0], logits[k], rtol=1e-3, atol=1e-4)
        assert alone.macs()[0].item() == pytest.approx(together.macs()[k].item())


@torch.no_grad()
def test_dynamic_models_spend_different_compute_on_different_inputs(name):
    model, x = zoo.model(name), _spread(name)
    with rd.trace() as trace:
        model(x)
    distinct = len(set(trace.macs().tolist()))
    assert distinct == 1 if model.spec.static_compute else distinct > 1


def test_exits_chances_sum_to_one_and_one_is_taken(name):
    model, (x, _) = zoo.model(name), zoo.samples(name, COUNT)
    with rd.trace() as trace:
        model(x)
    if not trace.exits:
        return
    stop = torch.stack([exit.stop for exit in trace.exits])
    torch.testing.assert_close(stop.sum(0), torch.ones(len(x)))
    assert (torch.stack([exit.taken for exit in trace.exits]).sum(0) == 1).all()


def test_sparse_execution_with_gradients_is_refused():
    name = zoo.DYNAMIC[0]
    with pytest.raises(rd.UserError, match="no gradient"), rd.execution("sparse"):
        zoo.model(name)(zoo.samples(name, 1)[0])


def test_card_belongs_to_the_weights_and_states_real_figures(name):
    model = zoo.model(name)
    card = model_card(name, model.dataset)
    assert card is not None
    assert card["sha256"] == sha256(find_weights(name, model.dataset))
    assert card["accuracy"] >= LEAST_ACCURACY[name]
    with rd.trace() as trace:
        model(zoo.samples(name, 1)[0])
    if model.spec.static_compute:
        assert card["compute"] == 1.0
    else:
        assert card["compute"] <= MOST_COMPUTE[name]
        assert card["compute_std"] > 0.03
        assert card["accuracy"] >= card["full_accuracy"] - 0.015
        assert set(trace.decisions) <= set(card["gates"])


def test_card_states_the_ensembles(name):
    attacked = model_card(name, zoo.model(name).dataset)["attacked"]
    assert attacked["samples"] == 200
    assert {"autoattack, 8/255", "autoslow, 8/255"} <= set(attacked)


def test_every_flag_of_a_card_is_explained(name):
    flags = model_card(name, zoo.model(name).dataset)["attacked"].get("flags", [])
    lines = re.findall(rf"^\| `{name}` \| `(\w+)` \|.+\|.+\|$", EXPLAINED, re.MULTILINE)
    assert {flag["flag"] for flag in flags} == set(lines)


@torch.no_grad()
def test_card_accuracy_is_what_the_shipped_model_does(name):
    model, card = zoo.model(name), model_card(name, zoo.model(name).dataset)
    data = zoo.data(model.dataset, 400)
    right = (model(data.stack(range(len(data)))).argmax(1).numpy() == data.labels).mean()
    # The card's accuracy is over the whole test set: within four standard errors of this sample.
    spread = (card["accuracy"] * (1 - card["accuracy"]) / len(data)) ** 0.5
    assert right == pytest.approx(card["accuracy"], abs=4 * spread)


def test_list_filters_by_family_and_compute():
    assert {s.name for s in rd.list_models("spatial.*")} <= set(zoo.NAMES)
    assert all(s.static_compute for s in rd.list_models(static=True))
    assert set(zoo.STATIC) | set(zoo.DYNAMIC) == set(zoo.NAMES)


def test_cards_are_json_without_surprises(name):
    card = model_card(name, zoo.model(name).dataset)
    assert json.loads(json.dumps(card)) == card
    assert time.strptime(card["date"], "%Y-%m-%d")
