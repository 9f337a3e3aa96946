"""Attacks: the contract of every registered attack, and what PGD must achieve."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import zoo
from torch import nn

import robustdyn as rd
from robustdyn import attacks
from robustdyn.attacks.adam import AdamStep
from robustdyn.attacks.ascent import ascend
from robustdyn.attacks.draws import sample_seeds, uniform
from robustdyn.attacks.objectives import class_margin, get_objective
from robustdyn.attacks.square import random_search

NAMES = [attack.name for attack in attacks.list_attacks() if not attack.needs]
FAST = {
    "pgd": {"steps": 3},
    "apgd": {"steps": 8},
    "mifgsm": {"steps": 3},
    "ilfo": {"steps": 8},
    "gradauto": {"steps": 8},
    "gradmdm": {"steps": 8},
    "lgm": {"steps": 3},
    "patch": {"steps": 3, "area": 0.3},
    "nes": {"queries": 30, "pairs": 4},
    "boundary": {"queries": 60},
    "comparison": {"queries": 20},
    "timing": {"queries": 20, "clock": lambda model, x: model(x)[:, 0]},
    "square": {"queries": 30},
    "least_perturbation": {"steps": 4, "halvings": 2},
    "autoslow": {"steps": 3, "queries": 9},
    "autoattack": {"steps": 3, "queries": 9, "cross_check": False},
    "torchattacks:PGD": {"steps": 3},
}
FOREIGN = {
    "torchattacks:PGD": {"steps": 3},
    "torchattacks:FGSM": {},
    "foolbox:LinfPGD": {"steps": 3, "abs_stepsize": 0.01},
    "foolbox:L2PGD": {"steps": 3, "abs_stepsize": 0.1},
}
THREATS = [rd.Threat("linf", 8 / 255), rd.Threat("l2", 0.5), rd.Threat("l1", 1.0)]
HALF = torch.tensor([True, True, False, False])  # of the columns of an image


class Toy(nn.Module):
    """Two classes by the mean of the pixels; a gate by their difference; a norm that can thaw."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(1)
        self.linear = nn.Linear(16, 2, bias=False)
        with torch.no_grad():
            self.linear.weight[0] = 1.0
            self.linear.weight[1] = -1.0

    def forward(self, x):
        flat = (self.norm(x) - 0.5).flatten(1)
        gate = rd.decide("gate", flat[:, 0] - flat[:, 1] - 0.2, kind="skip")
        with rd.region(gate.share()):
            y = self.linear(flat)
        return self.linear(flat) + 0 * gate.keep[:, None] * y


def batch(count=20):
    generator = torch.Generator().manual_seed(0)
    x = 0.5 + 0.2 * (torch.rand(count, 1, 4, 4, generator=generator) - 0.5)
    return x, Toy().eval()(x).argmax(1)


def run(name, model, x, y, threat, **params):
    return attacks.get(name)(model, x, y, threat=threat, **(FAST | FOREIGN).get(name, {}), **params)


@pytest.mark.parametrize("threat", THREATS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_an_attack_stays_inside_its_threat_and_is_pure(name, threat):
    x, y = batch()
    before, model = x.clone(), Toy()
    state = torch.get_rng_state()
    first, second = (run(name, model, x, y, threat) for _ in range(2))
    assert threat.is_met(first, x).all()
    assert torch.equal(first, second)
    assert torch.equal(x, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert not first.requires_grad
    assert first.dtype == x.dtype


@pytest.mark.parametrize("threat", THREATS, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_an_attack_keeps_to_a_mask_and_uses_it(name, threat):
    x, y = batch()
    masked = replace(threat, mask=HALF, eps=max(threat.eps, 0.2))
    x_adv = run(name, Toy(), x, y, masked)
    assert masked.is_met(x_adv, x).all()
    if name != "clean":
        assert (x_adv != x).any()


@pytest.mark.parametrize("threat", [rd.Threat("linf", 0.05), *THREATS[1:]], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_a_sample_is_attacked_alike_in_any_batch(name, threat):
    x, y = batch()
    seeds = sample_seeds(3, range(len(x)))
    together = run(name, Toy(), x, y, threat, seeds=seeds)
    parts = [
        run(name, Toy(), x[k : k + 7], y[k : k + 7], threat, seeds=seeds[k : k + 7])
        for k in range(0, len(x), 7)
    ]
    assert torch.equal(torch.cat(parts), together)


class OpenWhereRepeated(Toy):
    """Its gate opens from the fourth row on, so for rows that only fill a batch of three up."""

    def forward(self, x):
        flat = self.norm(x).flatten(1)
        margin = 0 * flat.sum(1) - 1 + 2 * (torch.arange(len(x)) >= 3)
        with rd.region(rd.decide("gate", margin, kind="skip").share()):
            y = self.linear(flat)
        return self.linear(flat) + 0 * y


def test_rows_that_fill_a_batch_up_are_not_judged():
    """Results of a sample's repetitions, which may round otherwise, are none of the sample's."""
    x, y = batch(3)
    model, threat, objective = OpenWhereRepeated().eval(), THREATS[0], get_objective("compute")
    limits = {"threat": threat, "objective": objective, "seeds": range(3)}
    with rd.trace() as passed:
        model(x)
    climbed = ascend(AdamStep(0.01, 0.0), model, x, y, **limits, steps=2)
    asked = random_search(model, x, y, **limits, queries=5)
    for found in (climbed, asked):
        assert torch.equal(found.score, passed.macs())
        assert not found.reached.any()
    assert torch.equal(run("nes", model, x, y, threat, objective="compute"), x)


@pytest.mark.parametrize("name", [*NAMES, *FOREIGN])
def test_the_model_comes_back_as_it_was(name):
    x, y = batch()
    model = Toy().train()
    model.norm.eval()
    model.linear.weight.requires_grad_(False)
    flags = [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    run(name, model, x, y, THREATS[1] if "L2" in name else THREATS[0])

    class Fails(Toy):
        def forward(self, x):
            raise ValueError("on purpose")

    failing = Fails().train()
    if name not in ("clean", "noise", "corruption"):  # these never ask the model
        with pytest.raises(ValueError, match="on purpose"):
            run(name, failing, x, y, THREATS[0])
    assert all(m.training for m in failing.modules())
    after = [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]
    assert after == flags
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_attacks_keep_the_threat_and_the_global_generators(name):
    x, y = batch()
    threat = THREATS[1] if "L2" in name else THREATS[0]
    model = Toy()
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].tolist()
    first, second = (run(name, model, x, y, threat) for _ in range(2))
    assert threat.is_met(first, x).all()
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.random.get_state()[1].tolist() == numpy_state


def test_both_libraries_agree_with_ours_step_by_step():
    """Without a random start and with all samples still right, three implementations agree."""
    name = "resnet"
    x, y = zoo.samples(name, 16)
    threat = rd.Threat("linf", 1 / 255)
    size = 0.3 / 255
    model = zoo.model(name)
    theirs = attacks.get("torchattacks:PGD")(
        model, x, y, threat=threat, steps=4, alpha=size, random_start=False
    )
    fools = attacks.get("foolbox:LinfPGD")(
        model, x, y, threat=threat, steps=4, abs_stepsize=size, random_start=False
    )
    ours = attacks.get("pgd")(
        model, x, y, threat=threat, steps=4, step_size=size, random_start=False
    )
    torch.testing.assert_close(theirs, fools)
    right = model(ours).argmax(1) == y  # a sample that turned wrong left our batch
    assert right.sum() >= 8
    different = ((ours - theirs).abs() > 1e-6).flatten(1).float().mean(1)[right]
    assert (different < 0.02).all()  # signs of gradients near 0 may differ


@pytest.mark.parametrize("threat", [THREATS[0], rd.Threat("l2", 0.2)], ids=str)
def test_pgd_finds_the_optimum_of_a_linear_objective(threat):
    x, y = batch()
    direction = torch.randn(1, 4, 4, generator=torch.Generator().manual_seed(1))

    def along(logits, y, trace):
        return seen["x"].flatten(1) @ direction.flatten()

    seen = {}

    class Watched(Toy):
        def forward(self, x):
            seen["x"] = x
            return super().forward(x)

    x_adv = attacks.get("pgd")(Watched(), x, y, threat=threat, objective=along, steps=40)
    gained = ((x_adv - x).flatten(1) @ direction.flatten()) / threat.eps
    best = direction.abs().sum() if threat.norm == "linf" else direction.norm()
    assert (gained > 0.95 * best).all()
    assert (gained <= best * (1 + 1e-4)).all()


def test_each_objective_moves_what_it_names():
    x, y = batch()
    threat, model = rd.Threat("linf", 0.25), Toy().eval()
    pgd = attacks.get("pgd")
    wrong = pgd(model, x, y, threat=threat, objective="cross_entropy")
    assert (model(wrong).argmax(1) != y).all()
    slow = pgd(model, x, y, threat=threat, objective="compute")
    with rd.trace() as before:
        model(x)
    with rd.trace() as after:
        model(slow)
    assert (before.macs() < before.max_macs()).all()
    assert (after.macs() == after.max_macs()).all()
    target = model(x).argmin(1)
    reached = pgd(model, x, y, threat=threat, objective="targeted_cross_entropy")
    assert (model(reached).argmax(1) == target).all()


def test_more_restarts_never_hurt():
    x, y = zoo.samples("resnet", 16)
    model, threat = zoo.model("resnet"), rd.Threat("linf", 2 / 255)
    scores = []
    for restarts in (1, 4):
        x_adv = attacks.get("pgd")(model, x, y, threat=threat, steps=3, restarts=restarts)
        scores.append(-class_margin(model(x_adv), y))
    assert (scores[1] >= scores[0] - 1e-5).logical_or(scores[1] > 0).all()


@pytest.mark.parametrize("name", ["straight_through", "sigmoid"])
def test_pgd_works_with_a_soft_estimator_but_judges_the_hard_model(name):
    x, y = batch()
    model = Toy().eval()
    with rd.estimator(name):
        x_adv = attacks.get("pgd")(model, x, y, threat=rd.Threat("linf", 0.25), objective="compute")
    with rd.trace() as trace:
        model(x_adv)
    assert (trace.macs() == trace.max_macs()).all()


def test_a_gate_without_a_gradient_is_not_moved():
    """The defect that the oracles look for: here the attack must fail, and only here."""

    class Detached(Toy):
        def forward(self, x):
            return super().forward(x.detach()) + 0 * x.sum()

    x, y = batch()
    x_adv = attacks.get("pgd")(
        Detached(), x, y, threat=THREATS[0], objective="compute", random_start=False
    )
    assert torch.equal(x_adv, x)


def test_random_draws_depend_on_seed_and_sample_only():
    like = torch.zeros(3, 2, 2)
    seeds = sample_seeds(0, [5, 9, 7])
    draws = uniform(seeds, like)
    assert torch.equal(uniform([seeds[1]], like[:1])[0], draws[1])
    assert not torch.equal(uniform(seeds, like, stream=1), draws)
    assert sample_seeds(0, [5]) != sample_seeds(1, [5])
    assert (draws >= 0).all()
    assert (draws < 1).all()


def test_margin_is_positive_only_for_the_predicted_class():
    logits = torch.randn(50, 4)
    y = torch.randint(4, (50,))
    assert ((class_margin(logits, y) > 0) == (logits.argmax(1) == y)).all()


@pytest.mark.parametrize(
    ("attack", "objective", "params", "message"),
    [
        ("pdg", "", {}, "Did you mean 'pgd'"),
        ("pgd", "compte", {}, "Did you mean 'compute'"),
        ("pgd", "", {"stepps": 3}, "Did you mean 'steps'"),
        ("noise", "compute", {}, "cannot maximise"),
        ("torchattacks:PDG", "", {}, "has no attack 'PDG'"),
        ("foolbox:LinfPDG", "", {}, "Did you mean 'LinfPGD'"),
        ("torchattack:PGD", "", {}, "Unknown attack"),
        ("torchattacks:PGD", "", {"stps": 3}, "Did you mean 'steps'"),
        ("foolbox:LinfPGD", "", {"abs_step": 0.1}, "Did you mean 'abs_stepsize'"),
    ],
)
def test_mistakes_are_answered(attack, objective, params, message):
    with pytest.raises(rd.UserError, match=message):
        attacks.check_params(attack, objective, params)


@pytest.mark.parametrize(
    "params",
    [
        {"steps": 0},
        {"steps": "ten"},
        {"restarts": 0},
        {"step_size": -0.1},
        {"restarts": 2, "random_start": False},
    ],
)
def test_impossible_values_are_refused_before_a_run(params):
    x, y = batch(2)
    with pytest.raises(rd.UserError):
        attacks.check_params("pgd", "", params)
    with pytest.raises(rd.UserError):
        attacks.get("pgd")(Toy(), x, y, threat=THREATS[0], **params)


def test_unknown_parameters_of_a_foreign_attack_are_refused():
    x, y = batch(2)
    with pytest.raises(rd.UserError, match="Did you mean 'steps'"):
        attacks.get("torchattacks:PGD")(Toy(), x, y, threat=THREATS[0], stps=3)
