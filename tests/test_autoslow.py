"""autoslow: never below a single attack of its list, and it breaks what only looks robust."""

import pytest
import tiny_gates as tiny
import torch
import zoo
from torch import nn

import robustdyn as rd
from robustdyn import attacks

WIDE = rd.Threat("linf", 0.3)


@torch.no_grad()
def macs(model, x):
    with rd.trace() as trace:
        model(x)
    return trace.macs(), trace.max_macs()


def slowed(model, x, y, *, threat=WIDE, **params):
    budget = {"steps": 20, "queries": 200} | params
    return attacks.get("autoslow")(model, x, y, threat=threat, **budget)


@pytest.mark.parametrize("name", zoo.DYNAMIC)
def test_no_sample_is_faster_than_clean_or_under_a_published_attack(name):
    """By construction: it runs each, and a sample's run depends on no other sample."""
    x, y = zoo.samples(name, 16 if name in zoo.KINDS else 4)
    eps = (32 if name in zoo.RESISTANT else 8) / 255
    model, threat = zoo.model(name), rd.Threat("linf", eps)
    steps = 3
    ours, _ = macs(model, slowed(model, x, y, threat=threat, steps=steps, queries=20))
    clean, _ = macs(model, x)
    assert (ours >= clean).all()
    assert ours.mean() > clean.mean()
    for attack in ["deepsloth"] * (name in zoo.EXITS) + ["ilfo", "gradauto", "gradmdm"]:
        of_paper = attacks.get(attack).params["steps"] or 30
        params = {"threat": threat, "steps": max(of_paper * steps // 50, 1)}
        single, _ = macs(model, attacks.get(attack)(model, x, y, **params))
        assert (ours >= single).all(), attack


@pytest.mark.parametrize("name", zoo.KINDS)
def test_it_is_mostly_slower_than_a_single_run(name):
    x, y = zoo.samples(name, 16)
    model, threat = zoo.model(name), rd.Threat("linf", 8 / 255)
    ours, _ = macs(model, slowed(model, x, y, threat=threat, steps=6, queries=20))
    for objective in ("margin_hinge", "compute", "log_reach", "uniform_exits"):
        params = {"threat": threat, "objective": objective, "steps": 6}
        single, _ = macs(model, attacks.get("apgd")(model, x, y, **params))
        assert ours.mean() >= single.mean()


def test_its_first_run_is_apgd_on_the_margin_hinge():
    """By construction: the same seeds give the same start, so never a sample is worse."""
    x, y = zoo.samples("sdn_resnet", 16)
    model, threat = zoo.model("sdn_resnet"), rd.Threat("linf", 4 / 255)
    params = {"threat": threat, "steps": 6}
    single = attacks.get("apgd")(model, x, y, objective="margin_hinge", **params)
    ours = slowed(model, x, y, queries=2, **params)
    assert (macs(model, ours)[0] >= macs(model, single)[0]).all()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_at_its_default_the_published_attacks_have_the_steps_of_their_papers(norm):
    """Counted on gates that never open, so that nothing leaves: passes without a gradient too."""
    looks = []

    class Shut(tiny.Skip):
        def forward(self, x):
            if torch.is_grad_enabled():
                looks.append(len(x))
            return super().forward(x)

        def margin(self, x):
            return super().margin(x) - 1e4

    x, y = tiny.inputs()
    slowed(Shut().eval(), x, y, threat=rd.Threat(norm, 0.1), steps=50, queries=2)
    assert len(looks) == 5 * 50 + 300 + 300 + 100


class Detached(tiny.Skip):
    """A gate without a gradient."""

    def margin(self, x):
        return super().margin(x.detach())


class Saturated(tiny.Skip):
    """A gate behind a saturated sigmoid: its log-odds hide the slope."""

    def margin(self, x):
        return torch.sigmoid(50 * super().margin(x)) - 0.5


class Noisy(tiny.Skip):
    """A gate that is noisy in evaluation."""

    def margin(self, x):
        margin = super().margin(x)
        return margin + 0.3 * torch.randn_like(margin)


class Scaled(tiny.Skip):
    """A gate with huge logits, whose probability has no gradient."""

    def __init__(self):
        super().__init__(scale=1e6)


class Quantised(nn.Module):
    """Inputs rounded to 8 levels before the gate, which stops every gradient."""

    def __init__(self):
        super().__init__()
        self.inner = tiny.Skip()

    def forward(self, x):
        return self.inner((x * 8).round() / 8)


@pytest.mark.parametrize("fake", [Detached, Saturated, Noisy, Scaled, Quantised])
def test_it_breaks_gates_that_only_hide_their_gradient(fake):
    x, y = tiny.inputs()
    model = fake().eval()
    found, most = macs(model, slowed(model, x, y))
    assert (found == most).float().mean() >= 0.9


def test_some_of_these_fakes_resist_plain_pgd():
    """Or else the test above would show nothing."""
    x, y = tiny.inputs()
    for fake in (Detached, Scaled, Quantised):
        params = {"objective": "compute", "steps": 20, "random_start": False}
        x_adv = attacks.get("pgd")(fake().eval(), x, y, threat=WIDE, **params)
        found, most = macs(fake().eval(), x_adv)
        assert (found == most).float().mean() < 0.5


@pytest.mark.parametrize("module", tiny.MAC_KINDS)
def test_it_opens_every_kind_of_gate(module):
    x, y = tiny.inputs()
    found, most = macs(module(), slowed(module(), x, y))
    torch.testing.assert_close(found / most, torch.full((len(x),), module.reachable).double())


@pytest.mark.parametrize("goal", ["slow_and_right", "slow_and_wrong"])
def test_its_other_goals(goal):
    x, y = zoo.samples("sdn_resnet", 16)
    model, threat = zoo.model("sdn_resnet"), rd.Threat("linf", 8 / 255)
    y = model(x).argmax(1)
    params = {"threat": threat, "objective": goal, "steps": 10, "queries": 20}
    x_adv = attacks.get("autoslow")(model, x, y, **params)
    right = model(x_adv).argmax(1) == y
    clean, most = macs(model, x)
    gained = ((macs(model, x_adv)[0] - clean) / (most - clean))[clean < most]
    assert right.all() if goal == "slow_and_right" else (~right).float().mean() > 0.8
    assert gained.mean() > 0.4


def test_a_goal_that_it_has_not_is_refused():
    with pytest.raises(rd.UserError, match="cannot maximise"):
        attacks.check_params("autoslow", "cross_entropy", {})
