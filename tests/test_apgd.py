"""APGD: its schedule, its optima, and that it beats PGD where step sizes matter."""

import pytest
import tiny_gates as tiny
import torch
import zoo

import robustdyn as rd
from robustdyn import attacks
from robustdyn.attacks.apgd import checkpoints

THREATS = [rd.Threat("linf", 8 / 255), rd.Threat("l2", 0.2), rd.Threat("l1", 0.4)]


def test_checkpoints_are_those_of_the_paper():
    """100 steps: 22 % first, then each interval 3 % shorter, at least 6 %."""
    assert list(checkpoints(100)) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert list(checkpoints(100).values()) == [22, 19, 16, 13, 10, 7, 6, 6]
    assert list(checkpoints(3)) == [1, 2]
    assert checkpoints(1) == {}


class Watched(tiny.Skip):
    def forward(self, x):
        self.x = x
        return super().forward(x)


@pytest.mark.parametrize("threat", THREATS, ids=str)
@pytest.mark.parametrize("engine", ["apgd", "pgd", "mifgsm"])
def test_gradient_attacks_find_the_optimum_of_a_linear_objective(engine, threat):
    if engine != "apgd" and threat.norm == "l1":
        pytest.skip("a fixed number of values per step cannot reach a single one")
    x, y = tiny.inputs()
    direction = torch.randn(16, generator=torch.Generator().manual_seed(1))
    model = Watched()

    def along(logits, y, trace):
        return model.x.flatten(1) @ direction

    x_adv = attacks.get(engine)(model, x, y, threat=threat, objective=along, steps=100)
    gained = ((x_adv - x).flatten(1) @ direction) / threat.eps
    dual = {"linf": 1, "l2": 2, "l1": torch.inf}[threat.norm]
    best = direction.norm(p=dual)
    assert (gained > 0.95 * best).all()
    assert (gained <= best * (1 + 1e-4)).all()


@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_smaller_steps_find_an_optimum_inside_the_ball(threat):
    """A sharp peak: the step must shrink, or it jumps over it for ever."""
    x, y = tiny.inputs()
    edge = threat.project(x + torch.randn(x.shape, generator=torch.Generator().manual_seed(0)), x)[
        :1
    ]
    peak = x[:1] + 0.5 * (edge - x[:1])
    model = Watched()

    def near(logits, y, trace):
        return -(model.x - peak).flatten(1).abs().sum(1)

    one = x[:1].expand(16, -1, -1, -1)
    x_adv = attacks.get("apgd")(
        model, one, y[:1].expand(16), threat=threat, objective=near, steps=100
    )
    assert ((x_adv - peak).flatten(1).abs().sum(1) < 0.3 * (x[:1] - peak).abs().sum()).all()


@pytest.mark.parametrize("name", zoo.DYNAMIC)
def test_it_is_slower_than_noise_on_every_dynamic_model(name):
    x, y = zoo.samples(name, 16)
    threat = rd.Threat("linf", (32 if name in zoo.RESISTANT else 8) / 255)
    found = {}
    for attack, params in (("noise", {}), ("apgd", {"objective": "margin_hinge", "steps": 10})):
        x_adv = attacks.get(attack)(zoo.model(name), x, y, threat=threat, **params)
        with rd.trace() as trace, torch.no_grad():
            zoo.model(name)(x_adv)
        found[attack] = trace.macs().mean()
    assert found["apgd"] > found["noise"]


@pytest.mark.parametrize("estimator", ["straight_through", "sigmoid", "gumbel"])
def test_every_estimator_is_judged_by_the_hard_model(estimator):
    x, y = tiny.inputs()
    params = {"threat": rd.Threat("linf", 0.3), "objective": "compute", "steps": 20, "eot": 2}
    model, seeds = tiny.Position(), list(range(len(x)))
    state = torch.get_rng_state()
    run = attacks.get("apgd")
    x_adv = run(model, x, y, seeds=seeds, estimator=estimator, **params)
    half = run(model, x[10:], y[10:], seeds=seeds[10:], estimator=estimator, **params)
    assert torch.equal(half, x_adv[10:])  # also of random gates
    assert torch.equal(torch.get_rng_state(), state)
    with rd.trace() as trace:
        model(x_adv)
    assert (trace.macs() == trace.max_macs()).all()


def test_estimators_differ_and_an_unknown_one_is_refused():
    x, y = zoo.samples("skipnet", 16)
    threat = rd.Threat("linf", 4 / 255)
    found = [
        attacks.get("apgd")(
            zoo.model("skipnet"), x, y, threat=threat, objective="compute", steps=2, estimator=name
        )
        for name in ("straight_through", "sigmoid", "gumbel")
    ]
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    with pytest.raises(rd.UserError, match="Did you mean 'sigmoid'"):
        attacks.get("apgd")(zoo.model("skipnet"), x, y, threat=threat, estimator="sigmiod")
