"""Rules of early exits, exits that cannot be taken, states of several tensors, calibration."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import robustdyn as rd
from robustdyn.exit_calibration import fit_exit_shares, fit_patience
from robustdyn.exit_losses import exit_cross_entropies
from robustdyn.primitives import confidence, early_exits, entropy, patience
from robustdyn.primitives.exit_rules import log_entropy

EXITS, CLASSES = 5, 3


def _logits(count, samples=64, scale=3.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return list(scale * torch.randn(count, samples, CLASSES, generator=generator))


class Grow(nn.Module):
    """One tensor more for every segment: dense connections in small."""

    def __init__(self, inputs):
        super().__init__()
        self.linear = nn.Linear(4 * inputs, 4)

    def forward(self, state):
        parts = state if isinstance(state, tuple) else (state,)
        return (*parts, self.linear(torch.cat(parts, 1)).relu())


class Exits(nn.Module):
    def __init__(self, rule, first=0, most_confident=False):
        super().__init__()
        torch.manual_seed(0)
        self.segments = nn.ModuleList(Grow(k + 1) for k in range(EXITS))
        self.linears = nn.ModuleList(nn.Linear(4 * (k + 2), CLASSES) for k in range(EXITS))
        for linear in self.linears:
            nn.init.normal_(linear.weight, std=3.0)
        self.heads = [lambda s, f=f: f(torch.cat(s, 1)) for f in self.linears]
        self.rule, self.options = rule, {"first": first, "most_confident": most_confident}

    def forward(self, x):
        return early_exits(x, self.segments, self.heads, self.rule, **self.options)


CASES = {
    "confidence": Exits(confidence(torch.full((EXITS,), 0.8))),
    "entropy": Exits(entropy(torch.full((EXITS,), 0.5))),
    "patience 1": Exits(patience(1), first=1),
    "patience 2": Exits(patience(2), first=2),
    "patience that is never enough": Exits(patience(EXITS - 1), first=EXITS - 1),
    "the most confident": Exits(confidence(torch.full((EXITS,), 0.95)), most_confident=True),
}


def _inputs(samples=24):
    return 2 * torch.randn(samples, 4, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_both_executions_agree_and_macs_are_what_runs(case):
    model, x = CASES[case].eval(), _inputs()
    with rd.trace() as trace:
        dense = model(x)
    with rd.execution("sparse"):
        torch.testing.assert_close(model(x), dense)
    for sample, macs in zip(x, trace.macs(), strict=True):
        with rd.execution("sparse"), FlopCounterMode(display=False) as counter:
            model(sample[None])
        assert macs.item() == counter.get_total_flops() / 2
    if "never" not in case:
        assert len(set(trace.macs().tolist())) > 2


@pytest.mark.parametrize("times", [1, 2, 3])
def test_exits_before_the_first_are_recorded_and_never_taken(times):
    model, x = Exits(patience(times), first=times), _inputs()
    with rd.trace() as trace:
        model(x)
    assert list(trace.decisions) == [f"exit{k}" for k in range(times, EXITS - 1)]
    assert len(trace.exits) == EXITS
    for exit in trace.exits[:times]:
        assert not exit.taken.any()
        assert (exit.stop == 0).all()
    assert (torch.stack([exit.taken for exit in trace.exits]).sum(0) == 1).all()


def test_a_sample_stops_when_its_answer_has_stayed_the_same():
    model, x = Exits(patience(1), first=1), _inputs()
    with rd.trace() as trace:
        logits = model(x)
    answers = torch.stack([exit.logits.argmax(1) for exit in trace.exits])  # (exits, B)
    for b, answer in enumerate(answers.T.tolist()):
        same = [k for k in range(1, EXITS - 1) if answer[k] == answer[k - 1]]
        expected = same[0] if same else EXITS - 1
        assert trace.exits[expected].taken[b]
        torch.testing.assert_close(logits[b], trace.exits[expected].logits[b])


@pytest.mark.parametrize("times", [1, 2])
def test_the_margin_of_patience_is_positive_where_answers_differ(times):
    logits = _logits(times + 2)
    margin = patience(times)(logits)
    answers = torch.stack(logits[-times - 1 :]).argmax(2)
    agree = (answers == answers[0]).all(0)
    assert agree.any()
    assert not agree.all()
    assert (margin > 0).tolist() == (~agree).tolist()
    gaps = torch.stack(logits[-times - 1 :]).topk(2, 2).values  # (times + 1, B, 2)
    smallest = (gaps[..., 0] - gaps[..., 1]).amin(0)
    torch.testing.assert_close(margin[agree], -smallest[agree])


def test_the_margin_of_patience_is_that_of_the_class_nearest_to_all_exits():
    one, two = torch.tensor([[5.0, 4.0, 0.0]]), torch.tensor([[0.0, 4.0, 7.0]])
    # Class 0 lacks 7 at the second exit, class 1 lacks 1 and 3, class 2 lacks 5 at the first.
    assert patience(1)([one, two]).item() == 3.0


def test_log_entropy_is_that_of_the_definition():
    logits = torch.cat(_logits(3)).double()
    p = logits.softmax(1)
    torch.testing.assert_close(log_entropy(logits), (-(p * p.log()).sum(1)).log())


def test_the_margin_of_entropy_is_positive_above_the_threshold():
    (logits,) = _logits(1)
    margin = entropy(torch.tensor([0.4]))([logits])
    p = logits.softmax(1)
    torch.testing.assert_close(margin > 0, -(p * p.log()).sum(1) > 0.4)


@pytest.mark.parametrize("gap", [0.0, 10.0, 30.0, 200.0, 1e4])
def test_log_entropy_has_a_gradient_where_probabilities_round_to_one(gap):
    logits = torch.tensor([[gap, 1.0, 0.5]], requires_grad=True)
    value = log_entropy(logits)
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    assert value.isfinite().all()
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0.1
    later = log_entropy(torch.tensor([[gap + 1.0, 1.0, 0.5]]))
    assert gap == 0.0 or later < value


class Table(nn.Module):
    """Exits whose logits are looked up: sample k has answers[:, k]."""

    def __init__(self, answers, rule):
        super().__init__()
        self.answers, self.rule = answers, rule
        self.segments = nn.ModuleList(nn.Linear(1, 1) for _ in answers)
        self.register_buffer("thresholds", torch.full((len(answers) - 1,), 0.5))
        self.register_buffer("times", torch.tensor(1))

    def forward(self, x):
        heads = [lambda state, z=z: z[state.long().flatten()] for z in self.answers]
        same = [lambda state, f=f: state + 0 * f(state) for f in self.segments]
        if self.rule == "patience":
            times = int(self.times)
            return early_exits(x, same, heads, patience(times), first=times)
        rule = {"confidence": confidence, "entropy": entropy}[self.rule](self.thresholds)
        return early_exits(x, same, heads, rule)


def _table(rule, samples=400):
    """Exits that are right more and more often, and know when."""
    labels = torch.arange(samples) % CLASSES
    generator = torch.Generator().manual_seed(0)
    hardness = torch.rand(samples, generator=generator)
    answers = []
    for k in range(4):
        sure = (4 * (0.4 + 0.25 * k - hardness)).clamp(min=-0.1)  # wrong where negative
        right = nn.functional.one_hot(labels, CLASSES)
        answers.append(sure[:, None] * right + 0.01 * torch.randn(samples, 1, generator=generator))
    return Table(answers, rule), torch.arange(samples).float()[:, None], labels


@pytest.mark.parametrize("measure", ["confidence", "entropy"])
@torch.no_grad()
def test_thresholds_are_the_cheapest_within_the_drop(measure):
    model, x, labels = _table(measure)
    costs = []
    for drop in (0.0, 0.01, 0.05):
        fit_exit_shares(measure=measure, max_drop=drop)(
            model, [x[:200], x[200:]], [labels[:200], labels[200:]]
        )
        with rd.trace() as trace:
            logits = model(x)
        full = (trace.exits[-1].logits.argmax(1) == labels).float().mean()
        assert (logits.argmax(1) == labels).float().mean() >= full - drop - 1e-6
        costs.append(trace.macs().mean().item())
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] < 0.7 * trace.max_macs()


@torch.no_grad()
def test_patience_is_the_least_within_the_drop():
    model, x, labels = _table("patience")
    found = []
    for drop in (1.0, 0.0):
        fit_patience(max_drop=drop)(model, [x], [labels])
        found.append(int(model.times))
    assert found[0] == 1
    with rd.trace() as trace:
        logits = model(x)
    full = (trace.exits[-1].logits.argmax(1) == labels).float().mean()
    assert found[1] == 2 or (logits.argmax(1) == labels).float().mean() >= full


def test_calibrations_and_losses_print_as_their_calls():
    assert repr(fit_patience(max_drop=0.1)) == "fit_patience(max_drop=0.1)"
    assert (
        repr(exit_cross_entropies(weights=(1.0, 2.0))) == "exit_cross_entropies(weights=(1.0, 2.0))"
    )


def test_the_loss_weighs_every_exit_on_every_sample():
    model, x = Exits(confidence(torch.full((EXITS,), 0.4))), _inputs(6)
    y = torch.arange(6) % CLASSES
    with rd.trace() as trace:
        logits = model(x)
    weights = (0.0, 1.0, 0.0, 0.0, 2.0)
    expected = nn.functional.cross_entropy(trace.exits[1].logits, y)
    expected = expected + 2 * nn.functional.cross_entropy(trace.exits[4].logits, y)
    loss = exit_cross_entropies(weights=weights)(logits, y, trace, 0.5)
    torch.testing.assert_close(loss, expected)
