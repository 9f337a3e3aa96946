"""Square: queries only, on any score, norm and rank of input."""

import pytest
import tiny_gates as tiny
import torch
import zoo
from torch import nn

import robustdyn as rd
from robustdyn import attacks

THREATS = [rd.Threat("linf", 0.2), rd.Threat("l2", 0.9), rd.Threat("l1", 3.0)]


class NoGradient(tiny.Skip):
    """A gate that no gradient passes: only queries can open it."""

    def margin(self, x):
        return super().margin(x.detach())


@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_it_opens_a_gate_without_a_gradient(threat):
    x, y = tiny.inputs()
    model = NoGradient()
    params = {"threat": threat, "objective": "compute"}
    by_gradient = attacks.get("apgd")(model, x, y, steps=30, random_start=False, **params)
    by_queries = attacks.get("square")(model, x, y, queries=300, **params)
    with rd.trace() as before:
        model(by_gradient)
    with rd.trace() as after:
        model(by_queries)
    assert before.macs().mean() < 0.6 * before.max_macs()
    assert after.macs().mean() > 0.9 * after.max_macs()


def test_it_takes_no_gradient():
    class Watched(tiny.Skip):
        def forward(self, x):
            assert not torch.is_grad_enabled()
            return super().forward(x)

    x, y = tiny.inputs()
    attacks.get("square")(Watched(), x, y, threat=THREATS[0], objective="compute", queries=5)


class Line(nn.Module):
    """Two classes by a linear score of inputs of any shape."""

    def __init__(self, shape):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("weight", torch.randn(shape, generator=generator))

    def forward(self, x):
        score = ((x - 0.5) * self.weight).flatten(1).sum(1)
        return torch.stack([score, -score], 1)


@pytest.mark.parametrize("threat", THREATS, ids=str)
@pytest.mark.parametrize("shape", [(10,), (9, 4), (3, 8, 8), (3, 2, 6, 6)], ids=len)
def test_it_works_on_inputs_of_any_rank(shape, threat):
    x = torch.full((16, *shape), 0.5)
    model = Line(shape)

    def score(logits, y, trace):
        return logits[:, 0]

    x_adv = attacks.get("square")(
        model, x, torch.zeros(16).long(), threat=threat, objective=score, queries=800
    )
    dual = {"linf": 1, "l2": 2, "l1": torch.inf}[threat.norm]
    best = threat.eps * model.weight.norm(p=dual) if threat.norm != "l1" else 0
    assert threat.is_met(x_adv, x).all()
    noise = attacks.get("noise")(model, x, torch.zeros(16).long(), threat=threat)
    gained, random = (model(at)[:, 0] for at in (x_adv, noise))
    assert (gained > random.amax()).all()
    assert (gained > 0.3 * best).all()


def test_more_queries_never_do_worse():
    name = "skip_rnn"
    x, y = zoo.samples(name, 16)
    macs = []
    for queries in (2, 20, 100):
        x_adv = attacks.get("square")(
            zoo.model(name), x, y, threat=rd.Threat("linf", 0.1), objective="slow", queries=queries
        )
        with rd.trace() as trace, torch.no_grad():
            zoo.model(name)(x_adv)
        macs.append(trace.macs().mean())
    assert macs[0] < macs[1] < macs[2]


@pytest.mark.parametrize("params", [{"queries": 1}, {"queries": "all"}, {"part": 0}, {"part": 2}])
def test_impossible_values_are_refused(params):
    with pytest.raises(rd.UserError):
        attacks.check_params("square", "", params)
