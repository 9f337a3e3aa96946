"""Models that only look robust, attacked for real: each must raise its flag, the honest one none.

All share a trained classifier and a gate of many channels: the more are open, the brighter the left
half of an image is, compared with the right half. A defence hides the gradient, or drowns it in
noise, and changes nothing else.
"""

import pandas as pd
import pytest
import torch
import zoo
from torch import nn

import robustdyn as rd
from robustdyn.checks import find_flags

THREAT = rd.Threat("linf", 16 / 255)
ATTACKS = (
    {"attack": "noise"},
    {"attack": "pgd", "objective": "cross_entropy", "steps": 20},
    {"attack": "pgd", "objective": "compute", "steps": 20, "random_start": False},
    {"attack": "square", "objective": "compute", "queries": 60},
)
DEFENCE = (
    *("zero_gate_gradient", "zero_loss_gradient", "randomised_judged_once", "blackbox_wins"),
    *("noise_wins", "compute_unmoved", "clean_differs"),
)


class Honest(nn.Module):
    """No defence."""

    def __init__(self):
        super().__init__()
        self.classifier = zoo.model("resnet")
        self.work = nn.Linear(784, 64)

    def seen(self, x):
        return x

    def margin(self, x):
        left, right = x[..., :14].mean((1, 2, 3)), x[..., 14:].mean((1, 2, 3))
        return 20 * ((left - right)[:, None] - torch.linspace(-0.1, 0.1, 32))

    def answer(self, logits):
        return logits

    def forward(self, x):
        x = self.seen(x)
        gate = rd.decide("gate", self.margin(x), kind="channel")
        with rd.region(gate.share()):
            y = self.work(x.flatten(1))
        return self.answer(self.classifier(x)) + 0 * (gate.keep.mean(1) * y.sum(1))[:, None]


class DetachedGate(Honest):
    def margin(self, x):
        return super().margin(x.detach())


class SaturatedSigmoid(Honest):
    def margin(self, x):
        return 1e5 * super().margin(x)


class NoiseInEval(Honest):
    def margin(self, x):
        return super().margin(x) + torch.randn(len(x), 32)


class HugeLogitScale(Honest):
    def answer(self, logits):
        return 1e4 * logits


class QuantisedInput(Honest):
    def seen(self, x):
        return (x * 31).round() / 31


FAKES = {
    DetachedGate: {"zero_gate_gradient", "compute_unmoved", "blackbox_wins"},
    SaturatedSigmoid: {"zero_gate_gradient", "compute_unmoved", "blackbox_wins"},
    NoiseInEval: {"randomised_judged_once"},
    HugeLogitScale: {"zero_loss_gradient"},
    QuantisedInput: {"zero_gate_gradient", "zero_loss_gradient", "blackbox_wins"},
}


def evaluated(kind, *attacks):
    data = rd.load_dataset("fashion_mnist", "test").subset(range(32))
    model = kind().eval()
    rows = [rd.evaluate(model, data, threat=THREAT, **attack) for attack in attacks]
    return pd.concat(rows, ignore_index=True)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_honest_model_raises_no_flag_of_a_defence():
    rows = evaluated(Honest, *ATTACKS)
    assert not {flag.name for flag in find_flags(rows)} & set(DEFENCE)
    slow = rows[(rows["attack"] == "pgd") & (rows["objective"] == "compute")]
    assert rd.metrics.headroom_recovered(slow).mean() > 0.5
    assert set(rows["fitted_on"]) == {""}


@pytest.mark.parametrize("kind", FAKES)
def test_a_fake_raises_its_flags(kind):
    found = {flag.name: flag for flag in find_flags(evaluated(kind, *ATTACKS))}
    assert FAKES[kind] <= set(found)
    others = {"zero_gate_gradient", "zero_loss_gradient", "randomised_judged_once"} - FAKES[kind]
    assert not others & set(found)


@pytest.mark.parametrize("kind", [DetachedGate, SaturatedSigmoid, QuantisedInput])
def test_the_black_box_breaks_what_gradients_do_not(kind):
    queries = {"attack": "square", "objective": "compute", "queries": 200}
    rows = evaluated(kind, ATTACKS[2], queries)
    pgd, square = (rows[rows["attack"] == name] for name in ("pgd", "square"))
    assert (pgd["adv_macs"] == pgd["clean_macs"]).all()
    assert rd.metrics.headroom_recovered(square).mean() > 0.3


def test_a_threshold_fitted_on_test_is_told_by_the_model():
    model = Honest().eval()
    model.fitted_on = "test"
    data = rd.load_dataset("fashion_mnist", "test").subset(range(4))
    rows = rd.evaluate(model, data, attack="noise", threat=THREAT)
    assert "fitted_on_test" in {flag.name for flag in find_flags(rows)}


def test_our_early_exits_are_fitted_on_the_calibration_split():
    data = rd.load_dataset("fashion_mnist", "test").subset(range(4))
    rows = rd.evaluate(zoo.model("sdn_resnet"), data, attack="noise", threat=THREAT)
    assert set(rows["fitted_on"]) == {"calibration"}
    assert not find_flags(rows)


def test_a_short_run_is_still_rising_and_a_long_one_is_not():
    small = {"attack": "pgd", "objective": "margin_hinge", "random_start": False}
    short = evaluated(Honest, small | {"steps": 10, "step_size": 0.0005})
    long = evaluated(Honest, small | {"steps": 60, "step_size": 0.01})
    assert short["still_rising"].astype(float).mean() > 0.5
    assert long["still_rising"].astype(float).mean() < 0.1
    assert {flag.name for flag in find_flags(short)} >= {"still_rising"}
    both = find_flags(
        pd.concat([short, long.assign(params=short["params"][0].replace("10", "60"))])
    )
    (gains,) = [flag for flag in both if flag.name == "more_effort_gains"]
    assert [subject.attack for subject in gains.subjects] == ["pgd margin hinge steps 10"]


def test_an_unbounded_attack_that_fails_is_flagged():
    data = rd.load_dataset("fashion_mnist", "test").subset(range(16))
    attack = {"attack": "pgd", "objective": "compute", "random_start": False}
    threat = rd.Threat("linf", 1.0)
    names = []
    for kind in (Honest, DetachedGate):
        rows = rd.evaluate(kind().eval(), data, threat=threat, **attack)
        names.append({flag.name for flag in find_flags(rows)})
    assert "unbounded_attack_fails" not in names[0]
    assert "unbounded_attack_fails" in names[1]
