"""Objectives: per sample, on every kind of gate, and with a gradient where others have none."""

import pytest
import tiny_gates as tiny
import torch
import zoo

import robustdyn as rd
from robustdyn import attacks
from robustdyn.attacks.compute_objectives import guarded
from robustdyn.attacks.look import look
from robustdyn.attacks.objectives import class_margin
from robustdyn.gates import full, using

NAMES = [*attacks.OBJECTIVES, "targeted_dlr:1", "targeted_dlr:2"]
MODULES = [*tiny.MAC_KINDS, tiny.Expert, tiny.Density]
COMPUTE = ["compute", "margin_hinge", "sharp_compute", "log_reach", "non_conflicting"]
WIDE = rd.Threat("linf", 0.3)


def seen(model, x, y, name):
    """Return the look at inputs and the verdict's score, y aimed as an attack would."""
    objective = attacks.get_objective(name)
    with torch.no_grad():
        y = y if objective.aim is None else objective.aim(model(x), y)
    price = torch.ones(len(x))
    return look(model, x, y, objective, price=price, seeds=range(len(x)), stream=0, eot=1)


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("name", NAMES)
def test_an_objective_is_per_sample_on_every_kind(name, module):
    """Shapes, finite values, and no sample's value or gradient depends on the others."""
    x, y = tiny.inputs(32)
    together = seen(module(), x, y, name)
    part = seen(module(), x[16:], y[16:], name)
    assert together.value.shape == together.verdict.score.shape == y.shape
    assert together.verdict.reached.shape == y.shape
    assert together.gradient.shape == x.shape
    assert together.value.isfinite().all()
    assert together.gradient.isfinite().all()
    torch.testing.assert_close(together.value[16:], part.value)
    torch.testing.assert_close(together.gradient[16:], part.gradient)
    torch.testing.assert_close(together.verdict.score[16:], part.verdict.score)


@pytest.mark.parametrize("module", tiny.MAC_KINDS)
@pytest.mark.parametrize("name", COMPUTE)
def test_a_compute_objective_opens_every_kind_of_gate(name, module):
    x, y = tiny.inputs()
    x_adv = attacks.get("pgd")(module(), x, y, threat=WIDE, objective=name, steps=20)
    with rd.trace() as clean:
        module()(x)
    with rd.trace() as trace:
        module()(x_adv)
    assert clean.macs().mean() < 0.7 * trace.max_macs()
    expected = torch.full((len(x),), module.reachable, dtype=torch.float64)
    torch.testing.assert_close(trace.macs() / trace.max_macs(), expected)


@pytest.mark.parametrize("name", ["uniform_exits", "patience"])
def test_exit_objectives_flatten_the_exits_answers(name):
    x, y = tiny.inputs()
    model = tiny.Exits()
    x_adv = attacks.get("pgd")(model, x, y, threat=WIDE, objective=name, steps=20)
    before, after = seen(model, x, y, name), seen(model, x_adv, y, name)
    assert after.value.mean() > before.value.mean()
    assert not before.verdict.reached.any()
    assert after.verdict.reached.all()


@pytest.mark.parametrize("scale", [1e4, 1e6])
@pytest.mark.parametrize("name", ["margin_hinge", "log_reach", "non_conflicting"])
def test_saturated_gates_keep_a_gradient_where_probabilities_have_none(name, scale):
    x, y = tiny.inputs()
    model = tiny.Skip(scale)
    assert (seen(model, x, y, "compute").gradient == 0).all()
    assert (seen(model, x, y, name).gradient.flatten(1).abs().sum(1) > 0).all()


def test_a_gate_that_is_not_reached_counts_still():
    x, y = tiny.inputs()
    with rd.trace() as trace:
        tiny.Exits(scale=2000.0)(x)
    first, second = guarded(trace)
    assert (first.macs > 0.4 * first.most).all()
    assert (second.macs < 1e-3 * second.most).all()
    assert second.most == first.most / 2
    assert seen(tiny.Exits(2000.0), x, y, "margin_hinge").gradient.abs().sum() > 0


@pytest.mark.parametrize("name", zoo.DYNAMIC)
def test_what_gates_guard_is_the_derivative_of_the_compute(name):
    """Against autograd through the shares, and with all gates open against the maximum."""
    x, _ = zoo.samples(name, 16)
    with rd.trace() as trace, torch.enable_grad():
        zoo.model(name)(x.clone().requires_grad_())
    shares = [g.share for g in guarded(trace)]
    derivatives = torch.autograd.grad(trace.expected_macs().sum(), [s.soft for s in shares])
    for one, derivative in zip(guarded(trace), derivatives, strict=True):
        torch.testing.assert_close(one.macs, derivative, rtol=1e-4, atol=1.0)
        assert (one.macs <= one.most * (1 + 1e-6)).all()
    with rd.trace() as opened, using(full), torch.no_grad():
        zoo.model(name)(x)
    fixed = sum(macs for macs, shares in opened.terms() if not shares)
    at_most = [(m, shares) for m, shares in opened.terms() if all(s.maximum for s in shares)]
    behind = {id(s): macs for macs, shares in at_most for s in shares[-1:]}
    assert fixed + sum(behind.values()) <= opened.max_macs() * (1 + 1e-9)


def test_the_non_conflicting_direction_does_not_close_what_is_open():
    """Two gates that pull the same pixels apart: A2 alone would shut the open one."""

    class Conflict(tiny.Tiny):
        def gated(self, x, flat):
            total = 0
            for k, (slope, offset) in enumerate(((1.0, -2.0), (-0.9, 1.5))):
                margin = 10 * slope * flat[:, 0] + flat[:, k + 1] + offset
                gate = rd.decide(f"gate{k}", margin, kind="skip")
                with rd.region(gate.share()):
                    total = total + gate.keep * self.work(flat).sum(1)
            return total[:, None]

    x = torch.full((16, 1, 4, 4), 0.5)
    y = torch.zeros(16, dtype=torch.long)
    plain = seen(Conflict(), x, y, "margin_hinge").gradient.flatten(1)
    direction = seen(Conflict(), x, y, "non_conflicting").gradient.flatten(1)
    opens_second = torch.zeros(16)
    opens_second[0], opens_second[2] = -9.0, 1.0
    assert (plain @ opens_second < 0).all()
    assert (direction @ opens_second > -1e-5).all()
    assert (direction.abs().sum(1) > 0).all()


def test_expert_load_gathers_the_tokens_of_a_sample_on_one_expert():
    x, y = tiny.inputs()
    model = tiny.Expert()
    x_adv = attacks.get("pgd")(model, x, y, threat=WIDE, objective="expert_load", steps=20)
    before = seen(model, x, y, "expert_load").verdict.score
    after = seen(model, x_adv, y, "expert_load").verdict.score
    assert (after >= before).all()
    assert before.mean() < 0.95 < after.mean()


def test_the_router_objective_narrows_the_gap_between_experts():
    x, y = tiny.inputs()
    model = tiny.Expert()
    params = {"steps": 20, "step_size": 1e-3, "random_start": False}
    x_adv = attacks.get("pgd")(model, x, y, threat=WIDE, objective="router", **params)
    assert seen(model, x_adv, y, "router").value.mean() > seen(model, x, y, "router").value.mean()


def test_activation_density_lights_a_rectifier():
    x, y = tiny.inputs()
    model = tiny.Density()
    x_adv = attacks.get("pgd")(model, x, y, threat=WIDE, objective="activation_density", steps=20)
    before, after = (seen(model, at, y, "activation_density").verdict.score for at in (x, x_adv))
    assert after.mean() > before.mean() + 0.1


@pytest.mark.parametrize("name", ["dlr", "targeted_dlr:1", "targeted_dlr:2"])
def test_logit_ratios_ignore_the_scale_of_the_logits(name):
    objective = attacks.get_objective(name)
    logits, y = torch.randn(50, 5), torch.randint(5, (50,))
    labels = y if objective.aim is None else objective.aim(logits, y)
    value = objective.value(logits, labels, rd.Trace())
    scaled = objective.value(1e4 * logits + 3, labels, rd.Trace())
    torch.testing.assert_close(scaled, value, rtol=1e-3, atol=1e-3)
    wrong = class_margin(logits, y) < 0
    assert torch.equal(objective.score(logits, labels, rd.Trace()) > 0, wrong)
    if name == "dlr":
        assert torch.equal(value > 0, wrong)


def test_targets_of_the_targeted_ratio_are_the_most_likely_wrong_classes():
    logits = torch.tensor([[5.0, 4.0, 3.0, 2.0]])
    targets = [
        attacks.get_objective(f"targeted_dlr:{rank}").aim(logits, torch.tensor([1])).tolist()
        for rank in (1, 2, 3, 9)
    ]
    assert targets == [[[1, 0]], [[1, 2]], [[1, 3]], [[1, 3]]]


@pytest.mark.parametrize("name", ["exits_average", "exits_max_average"])
def test_objectives_over_all_exits_read_every_exit(name):
    x, y = tiny.inputs()
    with rd.trace() as trace:
        logits = tiny.Exits()(x)
    value = attacks.get_objective(name).value
    losses = torch.stack(
        [torch.nn.functional.cross_entropy(e.logits, y, reduction="none") for e in trace.exits]
    )
    assert (value(logits, y, trace) <= losses.amax(0) + 1e-6).all()
    assert (value(logits, y, trace) >= losses.mean(0) - 1e-6).all()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("compte", "Did you mean 'compute'"),
        ("targeted_dlr:0", "no rank"),
        ("targeted_dlr:first", "no rank"),
        ("targetd_dlr:1", "Did you mean 'targeted_dlr"),
    ],
)
def test_mistakes_are_answered(name, message):
    with pytest.raises(rd.UserError, match=message):
        attacks.get_objective(name)
