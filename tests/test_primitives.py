"""Primitives: both executions agree whatever the gates say, extremes included."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import robustdyn as rd
from robustdyn.kernels import KERNELS, Implementation, Kernel
from robustdyn.primitives import (
    add_conv_at,
    add_if_kept,
    confidence,
    conv_at,
    early_exits,
    gru_step,
    run_or_bypass,
    selected,
    step,
)
from robustdyn.primitives.exits import confidence_logit

PATTERNS = {
    "none": [-1.0, -1.0, -1.0, -1.0],
    "all": [1.0, 1.0, 1.0, 1.0],
    "some": [1.0, -1.0, 1.0, -1.0],
    "one": [-1.0, -1.0, -1.0, 1.0],
}


class Skips(nn.Module):
    def __init__(self, form, margin):
        super().__init__()
        self.form, self.margin = form, margin
        self.block = nn.Linear(3, 3)

    def forward(self, x):
        gate = rd.decide("gate", self.margin[: len(x)], kind="skip")
        return self.form(gate, self.block, x, x)


class Steps(nn.Module):
    def __init__(self, margin):
        super().__init__()
        self.margin, self.cell = margin, nn.GRUCell(3, 5)

    def forward(self, x):
        state = (x.new_zeros(len(x), 5), x.new_ones(len(x)))
        for t in range(2):
            gate = rd.decide(f"step{t}", self.margin[: len(x)], kind="step")
            state = step(gate, lambda u, s: (self.cell(u, s[0]), s[1] * 2), x, state)
        return torch.cat([state[0], state[1][:, None]], 1)


class GRUSteps(nn.Module):
    def __init__(self, margin):
        super().__init__()
        self.margin, self.cell, self.read = margin, nn.GRUCell(3, 5), nn.Linear(5, 1)

    def forward(self, x):
        state = (x.new_zeros(len(x), 5), x.new_ones(len(x)))
        for t in range(2):
            gate = rd.decide(f"step{t}", self.margin[: len(x)], kind="step")
            state = gru_step(gate, self.cell, self.read, x, state)
        return torch.cat([state[0], state[1][:, None], selected(gate, x, 2 * x)], 1)


class Positions(nn.Module):
    def __init__(self, margin, stride, dilate, folded=False):
        super().__init__()
        self.folded, self.shortcut = folded, nn.Conv2d(2, 3, 1, stride, bias=False)
        self.stride, self.dilate, self.margin = stride, dilate, margin
        self.first = nn.Conv2d(2, 4, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(4, 3, 3, 1, 1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        nn.init.uniform_(self.norm.bias, 1, 2)  # so that what is not computed would show

    def forward(self, x):
        size = -(-x.shape[2] // self.stride)
        spots = torch.randn(4, 1, size, size, generator=torch.Generator().manual_seed(1))
        margin = (spots + 3 * self.margin[:, None, None, None])[: len(x)]
        gate = rd.decide("mask", margin, kind="position")
        then = nn.Sequential(self.norm, nn.ReLU())  # as a function, it is not folded
        after = then if self.folded else lambda y: then(y)
        y = conv_at(gate, self.first, after, x, dilate=self.dilate)
        if self.folded:
            return add_conv_at(gate, self.second, nn.Identity(), y, self.shortcut(x))
        return gate.keep * conv_at(gate, self.second, nn.Identity(), y)


class Exits(nn.Module):
    def __init__(self, thresholds, most_confident):
        super().__init__()
        self.segments = nn.ModuleList(nn.Linear(3, 3) for _ in range(3))
        self.heads = nn.ModuleList(nn.Linear(3, 4) for _ in range(3))
        self.register_buffer("thresholds", torch.tensor(thresholds))
        self.most_confident = most_confident

    def forward(self, x):
        rule = confidence(self.thresholds)
        return early_exits(x, self.segments, self.heads, rule, most_confident=self.most_confident)


def _models():
    for pattern, margin in PATTERNS.items():
        margin = torch.tensor(margin)
        yield f"bypass {pattern}", Skips(run_or_bypass, margin), (4, 3)
        yield f"add {pattern}", Skips(add_if_kept, margin), (4, 3)
        yield f"step {pattern}", Steps(margin), (4, 3)
        yield f"GRU step {pattern}", GRUSteps(margin), (4, 3)
        for stride in (1, 2):
            for size in (5, 8):
                case = f"positions {pattern}, stride {stride}, size {size}"
                yield case, Positions(margin, stride, 3), (4, 2, size, size)
                case = f"folded {case}"
                yield case, Positions(margin, stride, 3, folded=True), (4, 2, size, size)
    for thresholds in ([0.3, 0.3, 0.3], [0.999, 0.999, 0.999], [0.999, 0.3, 0.999]):
        for most_confident in (False, True):
            yield f"exits {thresholds} {most_confident}", Exits(thresholds, most_confident), (4, 3)


CASES = {name: (model, shape) for name, model, shape in _models()}


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_dense_equals_sparse_and_macs_are_what_runs(case):
    model, shape = CASES[case]
    model.eval()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with rd.trace() as trace:
        dense = model(x)
    with rd.execution("sparse"), FlopCounterMode(display=False) as counter:
        sparse = model(x)
    torch.testing.assert_close(dense, sparse)
    ran = counter.get_total_flops() / 2
    assert trace.macs().sum().item() == pytest.approx(ran) if trace._buckets else ran == 0


def test_what_is_read_around_the_mask_must_be_computed():
    """With the first convolution on the mask itself, not dilated, both executions differ."""
    model = Positions(torch.tensor(PATTERNS["some"]), 1, 1).eval()
    x = torch.randn(4, 2, 8, 8)
    with torch.no_grad():
        dense = model(x)
        with rd.execution("sparse"):
            sparse = model(x)
    assert not torch.allclose(dense, sparse)


def test_sparse_runs_only_what_is_kept():
    seen = []
    margin = torch.tensor([1.0, -1.0, 1.0])

    def block(x):
        seen.append(len(x))
        return x

    gate = rd.decide("gate", margin, kind="skip")
    with torch.no_grad(), rd.execution("sparse"):
        run_or_bypass(gate, block, torch.rand(3, 2), torch.rand(3, 2))
    assert seen == [2]


def test_confidence_is_the_log_odds_of_the_largest_probability():
    logits = torch.randn(6, 5, dtype=torch.float64) * 3
    expected = torch.logit(logits.softmax(1).amax(1))
    torch.testing.assert_close(confidence_logit(logits), expected)


def test_confidence_does_not_overflow():
    assert confidence_logit(torch.tensor([[200.0, 0.0, 0.0]])).isfinite().all()


def test_early_exit_takes_the_first_sure_exit():
    model = Exits([0.26, 0.26, 0.26], False)
    x = torch.randn(4, 3)
    with rd.trace() as trace:
        logits = model(x)
    assert trace.exits[0].taken.all()
    torch.testing.assert_close(logits, trace.exits[0].logits)


def test_if_no_exit_is_sure_the_most_confident_one_answers():
    model = Exits([0.9999] * 3, True)
    x = torch.randn(4, 3)
    with rd.trace() as trace:
        logits = model(x)
    exits = torch.stack([exit.logits for exit in trace.exits])
    best = exits.softmax(2).amax(2).argmax(0)
    assert trace.exits[-1].taken.all()
    torch.testing.assert_close(logits, exits[best, torch.arange(4)])


def test_the_dispatcher_takes_the_first_implementation_without_a_reason():
    kernel = Kernel("double", lambda x: 2 * x)
    assert kernel.select(3).name == "torch"
    kernel.implementations += [
        Implementation("never", lambda x: -1, lambda x: ["never runs"]),
        Implementation("small", lambda x: x + x, lambda x: [] if x < 10 else ["x is too large"]),
    ]
    assert kernel.select(3).name == "small"
    assert kernel.select(30).name == "torch"
    assert kernel(3) == 6
    assert kernel(30) == 60


def test_kernels_are_registered_under_their_names():
    assert {"gather_rows", "scatter_rows", "masked_conv2d"} <= set(KERNELS)
    assert all(kernel.__doc__ for kernel in KERNELS.values())
