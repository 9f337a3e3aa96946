"""Goals: every one with every engine, judged by the hard model."""

import pytest
import tiny_gates as tiny
import torch
import zoo

import robustdyn as rd
from robustdyn import attacks

SEARCHES = ("least_perturbation",)  # over eps: tested in test_least.py
ENGINES = [a.name for a in attacks.list_attacks() if "*" in a.maximises and a.name not in SEARCHES]
QUICK = {"square": {"queries": 300}}
WIDE = rd.Threat("linf", 0.3)


def attacked(model, x, y, goal, *, engine="pgd", threat=WIDE, **params):
    params = QUICK.get(engine, {"steps": 30}) | params
    return attacks.get(engine)(model, x, y, threat=threat, objective=goal, **params)


@torch.no_grad()
def passed(model, x):
    with rd.trace() as trace:
        return model(x), trace


class Graded(tiny.Tiny):
    """Eight channels that open one after the other."""

    def gated(self, x, flat):
        margin = self.margin(x)[:, None] + torch.linspace(-4, 4, 8)
        gate = rd.decide("gate", margin, kind="channel")
        with rd.region(gate.share()):
            return gate.keep.mean(1, keepdim=True) * self.work(flat).sum(1, keepdim=True)


class Torn(Graded):
    """Opening all channels turns the answer: only some of them go with the old one."""

    def forward(self, x):
        flat = (x - 0.5).flatten(1)
        tilt = self.margin(x) + 0 * self.gated(x, flat)[:, 0]
        return torch.stack([-tilt, tilt, tilt - 100], 1)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("goal", ["slow_and_right", "slow_and_right:compute"])
def test_slow_and_right_never_changes_the_answer(goal, engine):
    x, _ = tiny.inputs()
    model = Torn()
    logits, clean = passed(model, x)
    y = logits.argmax(1)
    after, trace = passed(model, attacked(model, x, y, goal, engine=engine))
    free, fastest = passed(model, attacked(model, x, y, "slow", engine=engine))
    assert torch.equal(after.argmax(1), y)
    assert (trace.macs() >= clean.macs()).all()
    assert (trace.macs() > clean.macs()).float().mean() > 0.5  # right, and slower all the same
    assert (trace.macs() < fastest.macs()).any()  # what the constraint costs
    assert (free.argmax(1) != y).any()


@pytest.mark.parametrize("engine", ENGINES)
def test_slow_and_wrong_prefers_wrong_and_then_slow(engine):
    x, _ = tiny.inputs()
    model = tiny.Skip()
    y = model(x).argmax(1)
    logits, trace = passed(model, attacked(model, x, y, "slow_and_wrong", engine=engine))
    assert (logits.argmax(1) != y).all()
    assert (trace.macs() == trace.max_macs()).float().mean() >= 0.9


@pytest.mark.parametrize("engine", ENGINES)
def test_fast_and_wrong_shuts_gates_and_turns_the_answer(engine):
    x, _ = tiny.inputs()
    x = x + 0.1 * torch.tensor([1.0, 1.0, -1.0, -1.0])  # open
    model = tiny.Skip()
    y = model(x).argmax(1)
    _, clean = passed(model, x)
    logits, trace = passed(model, attacked(model, x, y, "fast_and_wrong", engine=engine))
    assert (clean.macs() == clean.max_macs()).float().mean() > 0.5
    assert (logits.argmax(1) != y).all()
    assert (trace.macs() < trace.max_macs()).float().mean() > 0.9


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_exit_can_be_chosen(place, engine):
    x, y = tiny.inputs()
    model = tiny.Exits()
    _, trace = passed(model, attacked(model, x, y, f"exit:{place}", engine=engine))
    assert trace.exits[place].taken.float().mean() > (0.3 if engine == "square" else 0.99)


def test_an_exit_of_a_real_model_can_be_chosen():
    x, y = zoo.samples("sdn_resnet", 16)
    model = zoo.model("sdn_resnet")
    threat = rd.Threat("linf", 16 / 255)
    _, trace = passed(model, attacked(model, x, y, "exit:2", threat=threat))
    assert trace.exits[2].taken.float().mean() > 0.5


@pytest.mark.parametrize("engine", ENGINES)
def test_a_cost_can_be_chosen(engine):
    x, y = tiny.inputs()
    model = Graded()
    _, clean = passed(model, x)
    _, trace = passed(model, attacked(model, x, y, "cost:0.7", engine=engine))
    before, after = ((t.macs() / t.max_macs() - 0.7).abs() for t in (clean, trace))
    assert (after <= 0.1).all()  # a channel is .09
    assert after.mean() < before.mean() / 2


@pytest.mark.parametrize("engine", ENGINES)
def test_a_sample_that_spends_enough_is_left_alone(engine):
    x, y = tiny.inputs()
    model = Graded()
    x[:10] += 0.1 * torch.tensor([1.0, 1.0, -1.0, -1.0])  # these spend more already
    start = {} if engine == "square" else {"random_start": False}
    x_adv = attacked(model, x, y, "at_least:0.6", engine=engine, **start)
    _, trace = passed(model, x_adv)
    assert (trace.macs() >= 0.6 * trace.max_macs()).all()
    assert torch.equal(x_adv[:10], x[:10])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("exit:last", "no place of an exit"),
        ("cost:many", "no part"),
        ("at_least:1.5", "no part"),
        ("slow:compte", "Did you mean 'compute'"),
        ("slow_and_rigth", "Did you mean 'slow_and_right'"),
    ],
)
def test_mistakes_are_answered(name, message):
    with pytest.raises(rd.UserError, match=message):
        attacks.get_objective(name)
