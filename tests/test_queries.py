"""Black boxes: estimated gradients, one bit, a clock; and corruptions, which ask nothing."""

from dataclasses import replace
from itertools import pairwise

import pytest
import tiny_gates as tiny
import torch
import zoo

import robustdyn as rd
from robustdyn import attacks
from robustdyn.attacks.corruptions import KINDS
from robustdyn.attacks.draws import sample_seeds
from robustdyn.attacks.timing import sparse_seconds

THREATS = [rd.Threat("linf", 0.2), rd.Threat("l2", 0.9), rd.Threat("l1", 3.0)]
QUERIES = {"nes": {"queries": 400}, "boundary": {"queries": 400}, "comparison": {"queries": 400}}
ANY = rd.Threat("linf", 1.0)


class NoGradient(tiny.Skip):
    """A gate that no gradient passes, and no pass with gradients: only queries can open it."""

    def margin(self, x):
        assert not torch.is_grad_enabled()
        return super().margin(x)


@torch.no_grad()
def macs(model, x):
    with rd.trace() as trace:
        model(x)
    return trace.macs(), trace.max_macs()


@pytest.mark.parametrize("threat", THREATS, ids=str)
@pytest.mark.parametrize("name", QUERIES)
def test_it_opens_a_gate_by_queries_alone(name, threat):
    x, y = tiny.inputs()
    model = NoGradient()
    x_adv = attacks.get(name)(model, x, y, threat=threat, objective="slow", **QUERIES[name])
    noisy = attacks.get("noise")(model, x, y, threat=threat)
    clean, most = macs(model, x)
    assert threat.is_met(x_adv, x).all()
    assert macs(model, x_adv)[0].mean() > macs(model, noisy)[0].mean()
    assert macs(model, x_adv)[0].mean() > clean.mean() + 0.2 * (most - clean.mean())


@pytest.mark.parametrize("model", zoo.KINDS)
@pytest.mark.parametrize("name", QUERIES)
def test_it_runs_on_every_kind_alike_in_any_batch(name, model):
    x, y = zoo.samples(model, 20)
    seeds = sample_seeds(0, range(20))
    threat = rd.Threat("linf", 8 / 255)

    def run(rows):
        few = {"queries": 45} | ({"pairs": 4} if name == "nes" else {})
        return attacks.get(name)(
            *(zoo.model(model), x[rows], y[rows]),
            **{"threat": threat, "objective": "slow", "seeds": seeds[rows], **few},
        )

    together = run(slice(None))
    assert threat.is_met(together, x).all()
    assert torch.equal(run(slice(None)), together)
    assert torch.equal(run(slice(4, 9)), together[4:9])


@pytest.mark.parametrize("name", QUERIES)
def test_it_makes_answers_wrong(name):
    x, y = zoo.samples("resnet", 24)
    threat, model = rd.Threat("linf", 0.1), zoo.model("resnet")
    x_adv = attacks.get(name)(model, x, y, threat=threat, queries=300)
    noisy = attacks.get("noise")(model, x, y, threat=threat)
    ours, random = ((model(at).argmax(1) == y).float().mean() for at in (x_adv, noisy))
    assert ours < random - 0.1


def test_one_bit_is_all_that_the_boundary_attack_reads():
    """Any score of the same goal gives the same result, bit for bit."""
    goal = attacks.get_objective("dlr")
    odd = replace(
        goal,
        score=lambda *passed: goal.score(*passed).sign() * 7,
        reached=lambda score, trace: score > 0,
    )
    x, y = zoo.samples("resnet", 16)
    params = {"threat": rd.Threat("linf", 0.1), "queries": 60}
    first, second = (
        attacks.get("boundary")(zoo.model("resnet"), x, y, objective=o, **params)
        for o in (goal, odd)
    )
    assert torch.equal(first, second)


def test_order_is_all_that_the_comparison_reads():
    goal = attacks.get_objective("slow")
    odd = replace(goal, score=lambda *passed: goal.score(*passed).sqrt() - 5)
    x, y = zoo.samples("skipnet", 16)
    params = {"threat": rd.Threat("linf", 0.1), "queries": 40}
    first, second = (
        attacks.get("comparison")(zoo.model("skipnet"), x, y, objective=o, **params)
        for o in (goal, odd)
    )
    assert torch.equal(first, second)


def test_a_goal_that_is_reached_leaves_the_input_alone():
    x, y = zoo.samples("resnet", 16)
    wrong = (y + 1) % 10
    x_adv = attacks.get("boundary")(zoo.model("resnet"), x, wrong, threat=ANY, queries=40)
    right = zoo.model("resnet")(x).argmax(1) == wrong
    assert torch.equal(x_adv[~right], x[~right])


def test_a_noisy_clock_is_enough():
    x, y = tiny.inputs()
    model = NoGradient()
    generator = torch.Generator().manual_seed(0)

    def clock(model, at):
        seconds, _ = macs(model, at)
        return seconds + 20 * torch.randn(len(at), generator=generator)

    x_adv = attacks.get("timing")(model, x, y, threat=THREATS[0], queries=400, clock=clock)
    clean, most = macs(model, x)
    assert macs(model, x_adv)[0].mean() > clean.mean() + 0.2 * (most - clean.mean())


def test_the_default_clock_measures_each_sample_in_sparse_execution():
    x, y = zoo.samples("skipnet", 3)
    seconds = sparse_seconds(zoo.model("skipnet"), x)
    assert seconds.shape == (3,)
    assert (seconds > 0).all()
    x_adv = attacks.get("timing")(zoo.model("skipnet"), x, y, threat=THREATS[0], queries=5)
    assert THREATS[0].is_met(x_adv, x).all()


@pytest.mark.parametrize("dataset", ["fashion_mnist", "japanese_vowels"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_corruption_grows_with_its_severity(kind, dataset):
    x, y = zoo.samples("resnet" if dataset == "fashion_mnist" else "skip_rnn", 16)

    def distance(severity):
        x_adv = attacks.get("corruption")(
            torch.nn.Identity(), x, y, threat=ANY, kind=kind, severity=severity
        )
        assert ANY.is_met(x_adv, x).all()
        return (x_adv - x).flatten(1).norm(dim=1)

    sizes = [distance(severity) for severity in range(1, 6)]
    assert all((b > a).float().mean() > 0.9 for a, b in pairwise(sizes))


@pytest.mark.parametrize("kind", KINDS)
def test_a_corruption_is_alike_in_any_batch_and_cut_to_a_small_threat(kind):
    x, y = zoo.samples("resnet", 20)
    seeds = sample_seeds(0, range(20))
    small = rd.Threat("linf", 0.02)
    corrupt = attacks.get("corruption")
    model = torch.nn.Identity()
    whole = corrupt(model, x, y, threat=ANY, kind=kind, seeds=seeds)
    part = corrupt(model, x[3:8], y[3:8], threat=ANY, kind=kind, seeds=seeds[3:8])
    assert torch.equal(part, whole[3:8])
    cut = corrupt(model, x, y, threat=small, kind=kind, seeds=seeds)
    assert torch.equal(cut, small.project(whole, x))


def test_corruptions_are_what_their_names_say():
    x = torch.full((16, 1, 9, 9), 0.25)
    x[:, :, 4, 4] = 0.75

    def corrupted(kind):
        return attacks.get("corruption")(
            torch.nn.Identity(), x, torch.zeros(16).long(), threat=ANY, kind=kind
        )

    torch.testing.assert_close(corrupted("brightness"), x + 0.15)
    blurred = corrupted("blur")
    torch.testing.assert_close(blurred.sum(), x.sum())
    assert (blurred[:, :, 4, 4] < 0.75).all()
    assert (blurred[:, :, 4, 3] > 0.25).all()
    flat = corrupted("contrast")
    torch.testing.assert_close(flat.mean(), x.mean())
    torch.testing.assert_close(flat.std(), 0.4 * x.std())


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("nes", {"queries": 0}),
        ("nes", {"pairs": 1.5}),
        ("nes", {"spread": 0}),
        ("boundary", {"queries": "many"}),
        ("comparison", {"queries": 0}),
        ("timing", {"clock": 3}),
        ("corruption", {"kind": "blurr"}),
        ("corruption", {"severity": 6}),
        ("corruption", {"severity": 2.0}),
    ],
)
def test_impossible_values_are_refused(name, params):
    with pytest.raises(rd.UserError):
        attacks.check_params(name, "", params)
