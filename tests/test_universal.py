"""Universal perturbations, SlowFormer's patch and EREBA: made on one split, used on another."""

import subprocess
import sys

import pytest
import tiny_gates as tiny
import torch
import zoo

import robustdyn as rd
from robustdyn import attacks
from robustdyn.attacks import universal as module
from robustdyn.attacks.draws import sample_seeds

NAMES = ["universal", "slowformer", "ereba"]
FEW = {
    "universal": {"samples": 32, "steps": 4, "objective": "slow"},
    "slowformer": {"samples": 32, "steps": 4, "area": 0.1},
    "ereba": {"samples": 32, "steps": 4, "queries": 2},
}
THREATS = [rd.Threat("linf", 0.1), rd.Threat("l2", 1.0), rd.Threat("l1", 8.0)]
LINF = THREATS[0]


@torch.no_grad()
def macs(model, x):
    with rd.trace() as trace:
        model(x)
    return trace.macs()


def run(name, model, x, y, threat=LINF, **params):
    return attacks.get(name)(model, x, y, threat=threat, **FEW[name] | params)


@pytest.mark.parametrize("model", zoo.KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_it_runs_on_every_kind_alike_in_any_batch(name, model):
    x, y = zoo.samples(model, 20)
    seeds = sample_seeds(0, range(20))
    together = run(name, zoo.model(model), x, y, seeds=seeds)
    part = run(name, zoo.model(model), x[4:9], y[4:9], seeds=seeds[4:9])
    assert LINF.is_met(together, x).all()
    assert (together != x).any()
    assert torch.equal(part, together[4:9])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("threat", THREATS[1:], ids=str)
def test_it_keeps_every_norm_and_a_mask(name, threat):
    x, y = zoo.samples("sdn_resnet", 16)
    mask = torch.zeros(1, 28, 28, dtype=torch.bool)
    mask[:, :8] = True
    threat = rd.Threat(threat.norm, threat.eps, mask=mask)
    x_adv = run(name, zoo.model("sdn_resnet"), x, y, threat)
    assert threat.is_met(x_adv, x).all()


def test_all_inputs_carry_one_perturbation_and_classes_their_own():
    x, y = zoo.samples("sdn_resnet", 24)
    x = 0.2 + 0.6 * x  # so that no bound cuts it
    model = zoo.model("sdn_resnet")
    one = run("universal", model, x, y) - x
    assert torch.allclose(one, one[:1].expand_as(one), atol=1e-6)
    by_class = run("universal", model, x, y, per_class=True) - x
    for label in y.unique():
        own = by_class[y == label]
        assert torch.allclose(own, own[:1].expand_as(own), atol=1e-6)
    first, other = (by_class[y == label][0] for label in y.unique()[:2])
    assert not torch.allclose(first, other, atol=1e-3)


def test_it_does_not_depend_on_inputs_seeds_or_earlier_calls():
    x, y = zoo.samples("sdn_resnet", 24)
    model = rd.create_model("sdn_resnet")
    first = run("universal", model, x, y)
    code = (
        "import torch, robustdyn as rd\n"
        "from robustdyn import attacks\n"
        "data = rd.load_dataset('fashion_mnist', 'test')\n"
        "x, y = data.stack(range(7, 24)), torch.from_numpy(data.labels[7:24])\n"
        "model = rd.create_model('sdn_resnet')\n"
        "x_adv = attacks.get('universal')(model, x, y, threat=rd.Threat('linf', .1), samples=32,\n"
        "    steps=4, objective='slow', seeds=range(90, 107))\n"
        "print((x_adv * 255 * 64).double().sum().item())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) == (first[7:24] * 255 * 64).double().sum().item()


def test_it_is_made_once_for_a_model_and_again_for_other_weights(monkeypatch):
    made = []
    craft = module._craft
    monkeypatch.setattr(module, "_craft", lambda *given: made.append(1) or craft(*given))
    x, y = zoo.samples("sdn_resnet", 16)
    model = rd.create_model("sdn_resnet")
    for _ in range(2):
        run("universal", model, x, y)
    assert len(made) == 1
    with torch.no_grad():
        next(model.parameters()).mul_(1.01)
    run("universal", model, x, y)
    assert len(made) == 2
    run("universal", model, x, y, rd.Threat("linf", 0.05))
    attacks.get("universal")(model, x, y, threat=LINF, estimator="sigmoid", **FEW["universal"])
    assert len(made) == 4


@pytest.mark.parametrize("name", ["universal", "ereba"])
def test_it_beats_noise_on_inputs_that_it_never_saw(name):
    x, y = zoo.samples("skipnet", 40)
    model = zoo.model("skipnet")
    more = {"samples": 64, "steps": 12} | ({"queries": 4} if name == "ereba" else {})
    ours = macs(model, run(name, model, x, y, rd.Threat("linf", 8 / 255), **more))
    noisy = macs(model, attacks.get("noise")(model, x, y, threat=rd.Threat("linf", 8 / 255)))
    assert ours.mean() > 1.02 * noisy.mean()


def test_the_patch_is_one_square_in_the_corner():
    x, y = zoo.samples("dynconv", 16)
    threat = rd.Threat("linf", 1.0)
    x_adv = run("slowformer", zoo.model("dynconv"), x, y, threat, area=0.1)
    assert (x_adv[:, :, :9, :9] == x_adv[:1, :, :9, :9]).all()
    assert torch.equal(x_adv[:, :, 9:], x[:, :, 9:])
    assert torch.equal(x_adv[:, :, :, 9:], x[:, :, :, 9:])


def test_ereba_asks_for_no_gradient_of_the_model():
    class Watched(tiny.Tiny):
        dataset = "fashion_mnist"

        def forward(self, x):
            assert not torch.is_grad_enabled()
            gate = rd.decide("gate", 20 * (x.mean((1, 2, 3)) - 0.4), kind="skip")
            with rd.region(gate.share()):
                work = torch.nn.functional.linear(x.flatten(1), torch.ones(8, 784))
            return gate.keep[:, None] * work

    x, y = zoo.samples("resnet", 24)
    threat = rd.Threat("linf", 0.2)
    before = macs(Watched(), x)
    after = macs(Watched(), run("ereba", Watched(), x, y, threat, samples=200, steps=10))
    assert (after >= before).all()
    assert after.mean() > before.mean()


@pytest.mark.parametrize("name", NAMES)
def test_it_says_what_it_needs(name):
    assert attacks.get(name).needs == "a calibration split"
    x, y = tiny.inputs()
    with pytest.raises(rd.UserError, match="does not say what data"):
        run(name, tiny.Skip(), x, y)
    model = zoo.model("sdn_resnet")
    with pytest.raises(rd.UserError, match="those of 'fashion_mnist'"):
        run(name, model, torch.zeros(16, 1, 32, 32), torch.zeros(16).long())


def test_a_mask_for_each_sample_is_refused():
    x, y = zoo.samples("sdn_resnet", 16)
    each = rd.Threat("linf", 0.1, mask=torch.ones(16, 1, 28, 28, dtype=torch.bool))
    with pytest.raises(rd.UserError, match="mask for each sample"):
        run("universal", zoo.model("sdn_resnet"), x, y, each)


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("universal", {"samples": 0}),
        ("universal", {"per_class": "yes"}),
        ("universal", {"step_size": -1}),
        ("slowformer", {"area": 2}),
        ("slowformer", {"steps": 0}),
        ("ereba", {"queries": 0}),
        ("ereba", {"samples": 1.5}),
    ],
)
def test_impossible_values_are_refused(name, params):
    with pytest.raises(rd.UserError):
        attacks.check_params(name, "", params)
