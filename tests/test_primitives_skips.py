"""Halting: both executions agree, and the weights are those of adaptive computation time."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import robustdyn as rd
from robustdyn.primitives import ponder, until_halted

# scores of units 1 and 2 of three -> the unit at which the sample halts, and the weights
CASES = {
    "at once": ([0.995, 0.4], 1, [1.0, 0.0, 0.0]),
    "second": ([0.3, 0.8], 2, [0.3, 0.7, 0.0]),
    "second, on the spot": ([0.3, 0.7], 2, [0.3, 0.7, 0.0]),
    "last": ([0.3, 0.2], 3, [0.3, 0.2, 0.5]),
    "last, hardly": ([0.01, 0.01], 3, [0.01, 0.01, 0.98]),
}
SCORES = torch.tensor([scores for scores, _, _ in CASES.values()])  # (B, 2)
UNITS = torch.tensor([unit for _, unit, _ in CASES.values()])
WEIGHTS = torch.tensor([weights for _, _, weights in CASES.values()])


class Halting(nn.Module):
    """Three linear units; the first two features carry the scores along."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(3))
        self.seen = []

    def unit(self, layer):
        def run(x):
            self.seen.append(len(x))
            return torch.cat([x[:, :2], layer(x[:, 2:])], 1)

        return run

    def forward(self, x):
        units = [self.unit(layer) for layer in self.layers]
        scores = [lambda x: torch.logit(x[:, 0]), lambda x: torch.logit(x[:, 1])]
        return until_halted("stretch", x, units, scores)[:, 2:]

    def states(self, x):
        """(B, 3 units, 3), without any halting."""
        states = []
        for layer in self.layers:
            x = torch.cat([x[:, :2], layer(x[:, 2:])], 1)
            states.append(x[:, 2:])
        return torch.stack(states, 1)


@pytest.fixture
def model():
    return Halting()


@pytest.fixture
def x():
    return torch.cat([SCORES, torch.randn(len(SCORES), 3)], 1)


@torch.no_grad()
def test_states_are_mixed_with_the_scores_and_the_remainder(model, x):
    expected = (WEIGHTS[:, :, None] * model.states(x)).sum(1)
    torch.testing.assert_close(model(x), expected)


@torch.no_grad()
@pytest.mark.parametrize("rows", [slice(0, 5), slice(0, 1), slice(1, 2), slice(4, 5), slice(3, 5)])
def test_dense_equals_sparse_and_macs_are_what_runs(model, x, rows):
    x = x[rows]
    with rd.trace() as trace:
        dense = model(x)
    with rd.execution("sparse"), FlopCounterMode(display=False) as counter:
        sparse = model(x)
    torch.testing.assert_close(dense, sparse)
    assert trace.macs().tolist() == (9 * UNITS[rows]).tolist()
    assert counter.get_total_flops() / 2 == trace.macs().sum()


@torch.no_grad()
def test_sparse_runs_a_unit_for_the_samples_that_have_not_halted(model, x):
    with rd.execution("sparse"):
        model(x)
    assert model.seen == [5, 4, 2]


def test_what_has_halted_is_not_updated(model, x):
    parameters = [layer.weight for layer in model.layers]
    for row, unit in zip(x, UNITS, strict=True):
        gradients = torch.autograd.grad(model(row[None]).sum(), parameters)
        used = [bool((gradient != 0).any()) for gradient in gradients]
        assert used == [k < unit for k in range(3)]


@torch.no_grad()
def test_full_inference_runs_every_unit_and_hardly_changes_the_result(model, x):
    halted = model(x)
    with rd.estimator("full"), rd.trace() as trace:
        full = model(x)
    assert trace.macs().tolist() == [trace.max_macs()] * 5 == [27] * 5
    torch.testing.assert_close(full, halted, atol=0.05, rtol=0)  # 0.01 of the states after N


def test_margins_have_a_gradient_to_every_score_before_them(model, x):
    scores = SCORES.clone().requires_grad_()
    with rd.trace() as trace:
        model(torch.cat([scores, x[:, 2:]], 1))
    first, second = trace.decisions.values()
    assert [first.name, second.name] == ["stretch.unit1", "stretch.unit2"]
    assert (first.margin > 0).tolist() == (UNITS > 1).tolist()
    assert (second.margin > 0).tolist() == (UNITS > 2).tolist()
    (gradient,) = torch.autograd.grad(second.margin.sum(), scores)
    assert (gradient < 0).all()


def test_ponder_cost_is_units_and_remainder_with_the_gradient_of_the_remainder(model, x):
    scores = SCORES.clone().requires_grad_()
    with rd.trace() as trace:
        model(torch.cat([scores, x[:, 2:]], 1))
    cost = ponder(list(trace.decisions.values()))
    remainder = WEIGHTS.gather(1, UNITS[:, None] - 1)[:, 0]
    torch.testing.assert_close(cost, UNITS + remainder)
    (gradient,) = torch.autograd.grad(cost.sum(), scores)
    before_last = torch.arange(1, 3)[None] < UNITS[:, None]  # (B, 2)
    torch.testing.assert_close(gradient, -before_last.float())
