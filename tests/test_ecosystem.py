"""Our attacks as classes of torchattacks and foolbox: the same results, their manners."""

import inspect
import pickle
import subprocess
import sys

import foolbox
import pytest
import torch
import torchattacks
import zoo
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import robustdyn as rd
from robustdyn import attacks
from robustdyn.attacks import registry
from robustdyn.attacks.class_names import class_name, class_names
from robustdyn.attacks.draws import sample_seeds

NAMES = class_names()
# Those that need more than images and a model, such as exits, are only looked at, not run; nor is
# what goes by the clock, which is never the same twice.
RUN = sorted(
    name
    for name in NAMES
    if not getattr(attacks.get(NAMES[name]), "needs", "")
    and "clock" not in attacks.get(NAMES[name]).params
)
SMALL = {"steps": 3, "queries": 4, "cross_check": False}
EPS = 8 / 255


def quick(name):
    """The parameters that make an attack short."""
    return {key: SMALL[key] for key in attacks.get(name).params if key in SMALL}


@pytest.fixture(scope="module")
def batch():
    return zoo.model("skipnet"), *zoo.samples("skipnet", 6)


def ours(name, batch, *, seed=0, **options):
    model, x, y = batch
    return attacks.get(name)(
        model,
        x,
        y,
        threat=rd.Threat("linf", EPS),
        seeds=sample_seeds(seed, range(len(x))),
        **quick(name),
        **options,
    )


def test_importing_our_attacks_imports_neither_library():
    code = (
        "import sys, robustdyn.attacks.torchattacks, robustdyn.attacks.foolbox\n"
        "dir(robustdyn.attacks.torchattacks), dir(robustdyn.attacks.foolbox)\n"
        "sys.exit(bool({'torchattacks', 'foolbox'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_classes_go_by_the_usual_spelling():
    usual = ("PGD", "APGD", "MIFGSM", "AutoSlow", "AutoAttack", "Square", "Noise", "Clean")
    assert set(usual) <= set(NAMES)
    assert class_name("class_universal") == "ClassUniversal"
    assert set(dir(attacks.torchattacks)) == set(NAMES)
    assert set(dir(attacks.foolbox)) == {*NAMES, "CostAtLeast"}
    assert len(NAMES) == len(attacks.list_attacks())


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_attack_is_a_class_of_both_libraries(name):
    registered = attacks.get(NAMES[name])
    theirs = torchattacks.attack.Attack
    own = {"norm", "objective", "estimator", "mask", "seed", "eps", "times", "options", "distance"}
    assert not set(registered.params) & {*own, *vars(theirs("", nn.Linear(1, 1)))}
    for module, base in (
        (attacks.torchattacks, theirs),
        (attacks.foolbox, foolbox.attacks.base.FixedEpsilonAttack),
    ):
        kind = getattr(module, name)
        assert issubclass(kind, base)
        assert kind.__name__ == name
        assert pickle.loads(pickle.dumps(kind)) is kind
        assert registered.summary in inspect.getdoc(kind)
        assert set(inspect.signature(kind).parameters) >= {"norm", "seed", *registered.params}


@pytest.mark.parametrize("name", RUN)
def test_a_torchattacks_class_gives_our_result(name, batch):
    model, x, y = batch
    attack = getattr(attacks.torchattacks, name)(model, eps=EPS, **quick(NAMES[name]))
    assert torch.equal(attack(x, y), ours(NAMES[name], batch))
    assert repr(attack).startswith(f"{name}(")


@pytest.mark.parametrize("name", RUN)
def test_a_foolbox_class_gives_our_result(name, batch):
    model, x, y = batch
    attack = getattr(attacks.foolbox, name)(**quick(NAMES[name]))
    seen = foolbox.PyTorchModel(model, bounds=(0, 1))
    raw, clipped, success = attack(seen, x, y, epsilons=[0.0, EPS])
    assert torch.equal(raw[1], ours(NAMES[name], batch))
    assert torch.equal(success[1], model(clipped[1]).argmax(1) != y)
    assert torch.equal(clipped[0], x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m: attacks.torchattacks.PGD(m, stepz=3), "Did you mean 'steps'"),
        (lambda m: attacks.torchattacks.PGD(m, steps=0), "whole number of steps"),
        (lambda m: attacks.torchattacks.PGD(m, norm="lsup"), "Unknown norm"),
        (lambda m: attacks.torchattacks.PGD(m, objective="compte"), "Did you mean 'compute'"),
        (lambda m: attacks.torchattacks.Noise(m, objective="compute"), "cannot maximise"),
        (lambda m: attacks.torchattacks.Noise(m, objective=lambda *_: 0), "its own objective"),
        (lambda m: attacks.foolbox.PGD(stepz=3), "Did you mean 'steps'"),
        (lambda m: attacks.foolbox.PGD(norm="l0"), "Unknown norm"),
        (lambda m: attacks.foolbox.CostAtLeast(m, 80), "no part of the maximum"),
    ],
)
def test_mistakes_are_answered_before_a_run(make, message):
    with pytest.raises(rd.UserError, match=message):
        make(nn.Linear(2, 2))


@pytest.mark.parametrize("module", [attacks.torchattacks, attacks.foolbox])
def test_an_unknown_class_is_an_attribute_error_that_suggests(module):
    with pytest.raises(AttributeError, match="Did you mean 'AutoSlow'"):
        module.AutoSlw  # noqa: B018
    assert not hasattr(module, "__wrapped__")


class Plain(nn.Module):
    """Two classes by the mean of a normalised image; its input is normalised outside."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(1)
        self.linear = nn.Linear(16, 3)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            self.linear.weight.copy_(torch.randn(3, 16, generator=generator))

    def forward(self, x):
        return self.linear(self.norm(x).flatten(1))


def plain_batch():
    x = torch.rand(12, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    model = Plain().eval()
    return model, x, model((x - 0.3) / 0.2).argmax(1)


def test_normalised_images_are_attacked_behind_the_normalisation():
    model, x, y = plain_batch()
    mean, std = torch.tensor(0.3), torch.tensor(0.2)
    attack = attacks.torchattacks.PGD(model, eps=EPS, steps=3)
    with pytest.raises(rd.UserError, match="set_normalization_used"):
        attack((x - mean) / std, y)
    attack.set_normalization_used(mean=[0.3], std=[0.2])
    x_adv = attack((x - mean) / std, y) * std + mean

    class Inside(nn.Module):
        def forward(self, x):
            return model((x - mean) / std)

    expected = attacks.torchattacks.PGD(Inside(), eps=EPS, steps=3)
    expected.set_device("cpu")
    torch.testing.assert_close(x_adv, expected(x, y), atol=1e-5, rtol=0)
    assert rd.Threat("linf", EPS).is_met(x_adv, x, tolerance=1e-5).all()
    assert (model((x_adv - mean) / std).argmax(1) != y).any()


def test_a_model_that_normalises_itself_refuses_a_second_time(batch):
    with pytest.raises(rd.UserError, match="normalises its inputs itself"):
        attacks.torchattacks.PGD(batch[0]).set_normalization_used([0.5], [0.5])


def test_targeted_modes_reach_their_classes(batch):
    model, x, y = batch
    attack = attacks.torchattacks.PGD(model, eps=0.3, steps=20)
    attack.set_mode_targeted_by_function(lambda x, y: (y + 1) % 10, quiet=True)
    reached = model(attack(x, y)).argmax(1) == (y + 1) % 10
    assert reached.float().mean() > 0.5
    attack.set_mode_targeted_least_likely(quiet=True)
    least = model(x).argmin(1)
    assert (model(attack(x, y)).argmax(1) == least).any()
    attack.set_mode_default()
    assert (model(attack(x, y)).argmax(1) != y).all()
    criterion = foolbox.criteria.TargetedMisclassification((y + 1) % 10)
    seen = foolbox.PyTorchModel(model, bounds=(0, 1))
    *_, success = attacks.foolbox.PGD(steps=20)(seen, x, criterion, epsilons=0.3)
    assert torch.equal(success, reached)


def test_an_attack_without_targets_refuses_targeted_modes(batch):
    model, x, y = batch
    for attack in (
        attacks.torchattacks.AutoSlow(model),
        attacks.torchattacks.PGD(model, objective="compute"),
    ):
        with pytest.raises(rd.UserError, match="no targeted mode"):
            attack.set_mode_targeted_by_label(quiet=True)
    seen = foolbox.PyTorchModel(model, bounds=(0, 1))
    targets = foolbox.criteria.TargetedMisclassification(y)
    with pytest.raises(rd.UserError, match="cannot aim at target classes"):
        attacks.foolbox.AutoSlow()(seen, x, targets, epsilons=EPS)


def test_training_mode_is_refused(batch):
    attack = attacks.torchattacks.PGD(batch[0])
    attack.set_model_training_mode()
    with pytest.raises(rd.UserError, match="eval mode only"):
        attack.set_model_training_mode(model_training=True)


def test_ours_and_theirs_work_in_one_multi_attack(batch):
    model, x, y = batch
    both = [
        torchattacks.FGSM(model, eps=2 / 255),
        attacks.torchattacks.PGD(model, eps=16 / 255, steps=5),
    ]
    alone = model(both[0](x, y)).argmax(1) == y
    together = model(torchattacks.MultiAttack(both)(x, y)).argmax(1) == y
    assert together.sum() < alone.sum()


def test_a_saved_file_loads_again_and_the_models_modes_come_back(tmp_path):
    model, x, y = plain_batch()
    model.train()
    model.norm.eval()
    attack = attacks.torchattacks.PGD(model, eps=EPS, steps=2)
    loader = DataLoader(TensorDataset(x, y), batch_size=5)
    attack.save(loader, str(tmp_path / "adv.pt"), verbose=False)
    assert model.training
    assert not model.norm.training
    parts = list(torchattacks.attack.Attack.load(str(tmp_path / "adv.pt"), batch_size=5))
    assert torch.equal(parts[0][0], attack(x[:5], y[:5]))
    with pytest.raises(TypeError):
        attack.save(loader, save_pth="typo")


def test_a_failing_model_comes_back_as_it_was():
    model, x, y = plain_batch()
    model.train()
    model.norm.eval()
    attack = attacks.torchattacks.PGD(model, eps=EPS)
    attack.set_normalization_used(mean=[0.0], std=[1.0])
    model.linear = nn.Linear(3, 3)
    with pytest.raises(RuntimeError):
        attack(x, y)
    assert model.training
    assert not model.norm.training
    assert attack._normalization_applied is True


def test_a_parameter_may_be_set_later_and_may_be_named_as_a_method(batch, monkeypatch):
    monkeypatch.setattr(registry, "_ATTACKS", dict(registry._ATTACKS))

    @attacks.register_attack()
    def odd_attack(model, x, y, *, threat, objective, seeds, forward=0.0, steps=1):
        """Return inputs (B, ...) a little brighter."""
        return (x + forward / 255 * steps).clamp(0, 1)

    model, x, y = batch
    attack = attacks.torchattacks.OddAttack(model, forward=1.0)
    assert torch.equal(attack(x, y), (x + 1 / 255).clamp(0, 1))
    attack.forward_, attack.steps = 2.0, 2
    assert torch.equal(attack(x, y), (x + 4 / 255).clamp(0, 1))
    attack.eps = -1.0
    with pytest.raises(rd.UserError, match="no radius"):
        attack(x, y)


def test_labels_are_needed(batch):
    with pytest.raises(rd.UserError, match="without labels"):
        attacks.torchattacks.PGD(batch[0])(batch[1])


def costs(model, x):
    with torch.no_grad(), rd.trace() as passed:
        model(x)
    return passed.macs() / passed.max_macs()


def test_a_cost_is_a_criterion_and_success_is_judged_after_clipping(batch):
    model, x, _ = batch
    seen = foolbox.PyTorchModel(model, bounds=(0, 1))
    criterion = attacks.foolbox.CostAtLeast(seen, 0.7)
    for attack in (attacks.foolbox.PGD(steps=10), attacks.foolbox.AutoSlow(**quick("autoslow"))):
        _, clipped, success = attack(seen, x, criterion, epsilons=[0.0, 16 / 255])
        assert torch.equal(success[1], costs(model, clipped[1]) >= 0.7 - 1e-9)
        assert success[1].sum() > success[0].sum()


def test_criteria_join(batch):
    model, x, y = batch
    seen = foolbox.PyTorchModel(model, bounds=(0, 1))
    joined = attacks.foolbox.CostAtLeast(seen, 0.6) & foolbox.criteria.Misclassification(y)
    _, clipped, success = attacks.foolbox.PGD(steps=20)(seen, x, joined, epsilons=32 / 255)
    wrong = model(clipped).argmax(1) != y
    assert torch.equal(success, wrong & (costs(model, clipped) >= 0.6 - 1e-9))
    assert success.any()

    class Odd(foolbox.criteria.Criterion):
        def __repr__(self):
            return "Odd()"

        def __call__(self, perturbed, outputs):
            return outputs

    with pytest.raises(rd.UserError, match="cannot aim at the criterion Odd"):
        attacks.foolbox.PGD()(seen, x, Odd(), epsilons=EPS)


def test_repeating_draws_again_and_keeps_what_succeeded(batch):
    model, x, y = batch
    seen = foolbox.PyTorchModel(model, bounds=(0, 1))
    once = attacks.foolbox.Noise()
    counts = [attack(seen, x, y, epsilons=0.4)[2].sum() for attack in (once, once.repeat(8))]
    assert counts[1] >= counts[0]
    first, again = (once.repeat(3).repeat(2)(seen, x, y, epsilons=0.4)[1] for _ in range(2))
    assert torch.equal(first, again)
    assert once.times == 1
    other = attacks.foolbox.Noise(seed=1)(seen, x, y, epsilons=0.4)[0]
    assert not torch.equal(other, once(seen, x, y, epsilons=0.4)[0])


def test_foolbox_preprocessing_and_bounds_are_the_models():
    model, x, y = plain_batch()
    seen = foolbox.PyTorchModel(
        model, bounds=(0, 255), preprocessing={"mean": [0.3 * 255], "std": [0.2 * 255], "axis": -3}
    )
    attack = attacks.foolbox.PGD(steps=3, random_start=False)
    _, clipped, success = attack(seen, x * 255, y, epsilons=32.0)
    assert ((clipped - x * 255).abs() <= 32.01).all()
    assert success.any()
    moved = seen.transform_bounds((0, 1))
    _, again, _ = attack(moved, x, y, epsilons=32 / 255)
    torch.testing.assert_close(again * 255, clipped, atol=1e-2, rtol=0)
    with pytest.raises(rd.UserError, match=r"holds no nn\.Module"):
        attack(foolbox.models.TransformBoundsWrapper(None, (0, 1)), x, y, epsilons=EPS)
