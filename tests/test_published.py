"""Published attacks: each opens the gates it was made for, on real models and on every kind."""

import pytest
import tiny_gates as tiny
import torch
import zoo

import robustdyn as rd
from robustdyn import attacks
from robustdyn.attacks.compute_objectives import guarded
from robustdyn.attacks.gradauto import gradauto_direction
from robustdyn.attacks.gradmdm import gradmdm_direction
from robustdyn.attacks.ilfo import gate_chances
from robustdyn.attacks.look import judge
from robustdyn.gates import sigmoid, using

WIDE = rd.Threat("linf", 0.3)
SMALL = rd.Threat("linf", 8 / 255)
GATES = ["ilfo", "gradauto", "gradmdm"]
EXITS = [name for name in zoo.KINDS if name in zoo.EXITS]
NO_EXITS = [name for name in zoo.KINDS if not zoo.ends_early(name)]
FEW = {"deepsloth": 8, "lgm": 3, "sponge": 3}


@torch.no_grad()
def macs(model, x):
    with rd.trace() as trace:
        model(x)
    return trace.macs(), trace.max_macs()


def published(name, model, x, y, threat=SMALL, **params):
    params = {"steps": FEW.get(name, 6)} | params
    return attacks.get(name)(model, x, y, threat=threat, **params)


@pytest.mark.parametrize("module", tiny.MAC_KINDS)
@pytest.mark.parametrize("name", GATES)
def test_an_attack_on_gates_opens_every_kind(name, module):
    x, y = tiny.inputs()
    x_adv = published(name, module(), x, y, WIDE, steps=60, rate=0.02)
    before, most = macs(module(), x)
    after, _ = macs(module(), x_adv)
    assert (after >= before).all()
    assert after.mean() > 0.9 * module.reachable * most


@pytest.mark.parametrize("model", zoo.KINDS)
@pytest.mark.parametrize("name", [*GATES, "lgm"])
def test_it_runs_on_every_kind(name, model):
    x, y = zoo.samples(model, 16)
    x_adv = published(name, zoo.model(model), x, y)
    assert SMALL.is_met(x_adv, x).all()
    assert x_adv.isfinite().all()


@pytest.mark.parametrize("model", zoo.STATIC[:1])
@pytest.mark.parametrize("name", [*GATES, "deepsloth"])
def test_a_model_without_gates_is_left_alone(name, model):
    x, y = zoo.samples(model, 16)
    assert torch.equal(published(name, zoo.model(model), x, y), x)


@pytest.mark.parametrize("name", [*GATES, "deepsloth"])
def test_it_beats_noise_on_exits(name):
    x, y = zoo.samples("sdn_resnet", 16)
    model = zoo.model("sdn_resnet")
    by_noise, most = macs(model, attacks.get("noise")(model, x, y, threat=SMALL))
    ours, _ = macs(model, published(name, model, x, y, steps=20))
    assert ours.mean() > by_noise.mean() + 0.3 * (most - by_noise.mean())


@pytest.mark.parametrize("threat", [rd.Threat("l2", 1.0), rd.Threat("l1", 8.0)], ids=str)
@pytest.mark.parametrize("model", EXITS)
def test_deepsloth_in_other_norms(model, threat):
    x, y = zoo.samples(model, 16)
    x_adv = published("deepsloth", zoo.model(model), x, y, threat, steps=20)
    assert threat.is_met(x_adv, x).all()
    before, most = macs(zoo.model(model), x)
    after, _ = macs(zoo.model(model), x_adv)
    assert after.mean() > before.mean() + 0.1 * (most - before.mean())


@pytest.mark.parametrize("model", EXITS)
def test_deepsloth_is_alike_in_any_batch_and_run(model):
    x, y = zoo.samples(model, 24)
    together = published("deepsloth", zoo.model(model), x, y)
    assert torch.equal(published("deepsloth", zoo.model(model), x, y), together)
    part = attacks.get("deepsloth")(
        zoo.model(model), x[5:9], y[5:9], threat=SMALL, seeds=range(5, 9), steps=8
    )
    assert torch.equal(part, together[5:9])


@pytest.mark.parametrize("model", zoo.KINDS)
def test_sponge_runs_where_there_are_rectifiers(model):
    x, y = zoo.samples(model, 16)
    if model.endswith("rnn"):
        with pytest.raises(rd.UserError, match="rectifiers"):
            published("sponge", zoo.model(model), x, y)
        return
    x_adv = published("sponge", zoo.model(model), x, y)
    assert SMALL.is_met(x_adv, x).all()
    density = attacks.get_objective("activation_density")
    before, after = (judge(zoo.model(model), at, y, density).score for at in (x, x_adv))
    assert (after >= before - 1e-9).all()
    assert after.mean() > before.mean()


@pytest.mark.parametrize("model", NO_EXITS)
def test_deepsloth_says_that_it_needs_exits(model):
    x, y = zoo.samples(model, 16)
    with pytest.raises(rd.UserError, match="exits"):
        published("deepsloth", zoo.model(model), x, y)
    assert attacks.get("deepsloth").needs == "exits"


@pytest.mark.parametrize("direction", [gradauto_direction, gradmdm_direction])
def test_a_direction_closes_no_open_gate(direction):
    """Two gates pull pixel 0 apart: opening the second may not shut the first."""

    class Conflict(tiny.Tiny):
        def gated(self, x, flat):
            total = 0
            for k, (slope, offset) in enumerate(((1.0, 2.0), (-0.9, -1.5))):
                margin = 10 * slope * flat[:, 0] + flat[:, k + 1] + offset
                gate = rd.decide(f"gate{k}", margin, kind="skip")
                with rd.region(gate.share()):
                    total = total + gate.keep * self.work(flat).sum(1)
            return total[:, None]

    x = torch.full((16, 1, 4, 4), 0.5, requires_grad=True)
    y = torch.zeros(16, dtype=torch.long)
    with rd.trace() as trace:
        logits = Conflict()(x)
    way = direction(logits, y, trace, x).flatten(1)
    opens_first = torch.zeros(16)
    opens_first[0], opens_first[1] = 10.0, 1.0
    opens_second = torch.zeros(16)
    opens_second[0], opens_second[2] = -9.0, 1.0
    assert (way @ opens_first > -1e-5).all()
    assert (way @ opens_second > 0).all()
    torch.testing.assert_close(way.norm(dim=1), torch.ones(16))


@pytest.mark.parametrize("model", zoo.DYNAMIC)
def test_every_decision_of_a_model_is_a_gate_that_can_be_attacked(model):
    x, _ = zoo.samples(model, 4)
    with torch.no_grad(), rd.trace() as trace:
        zoo.model(model)(x)
    guarding = {gate.share.decision for gate in guarded(trace)} - {None}
    names = {d.name.partition("[")[0].removeprefix("any of ") for d in guarding}
    assert names >= set(trace.decisions)


def test_every_decision_of_a_gate_is_a_gate_of_its_own():
    x, _ = tiny.inputs()
    with rd.trace() as trace:
        tiny.Position()(x)
    (chance,) = gate_chances(trace)
    assert chance.shape == (len(x), 16)


def test_sponge_lights_up_more_activations():
    x, y = tiny.inputs()
    model = tiny.Density()
    density = attacks.get_objective("activation_density")
    x_adv = published("sponge", model, x, y, WIDE, steps=20)
    before, after = (judge(model, at, y, density).score for at in (x, x_adv))
    assert (after >= before).all()
    assert after.mean() > before.mean() + 0.1


@pytest.mark.parametrize("forward", ["soft", "hard"])
def test_lgm_overrides_the_estimator_and_is_judged_by_the_hard_model(forward):
    x, y = zoo.samples("skipnet", 16)
    model = zoo.model("skipnet")
    ours = published("lgm", model, x, y, forward=forward, steps=5)
    with using(sigmoid):
        again = published("lgm", model, x, y, forward=forward, steps=5)
    assert torch.equal(ours, again)
    noisy = attacks.get("noise")(model, x, y, threat=SMALL)
    right = [(model(at).argmax(1) == y).float().mean() for at in (ours, noisy)]
    assert right[0] < right[1] - 0.3


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("ilfo", {"steps": 0}),
        ("gradauto", {"rate": 0}),
        ("gradmdm", {"pull": -1}),
        ("deepsloth", {"steps": 1.5}),
        ("sponge", {"step_size": 0}),
        ("lgm", {"slope": 0}),
        ("lgm", {"forward": "sof"}),
        ("ilfo", {"objective": "compute"}),
    ],
)
def test_impossible_values_are_refused(name, params):
    objective = params.pop("objective", "")
    with pytest.raises(rd.UserError):
        attacks.check_params(name, objective, params)
