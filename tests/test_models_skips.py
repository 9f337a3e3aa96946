"""The models that skip blocks: their MACs by hand for chosen decisions, and what is theirs."""

from itertools import product

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import robustdyn as rd
from robustdyn.models.instance.act_resnet import ActResNet, ponder_cost
from robustdyn.models.instance.convnet_aig import ConvNetAIG

SHAPE = {"num_classes": 3, "in_channels": 1, "mean": [0.3], "std": [0.3]}
BOTH = list(product([False, True], repeat=2))

# Widths 4 and 6, inputs 8x8: stem and first block at 4x4, then at 2x2.
STEM = 9 * 1 * 4 * 16
BLOCK = 2 * 9 * 4 * 4 * 16
HALVING_BRANCH, HALVING_SHORTCUT = (9 * 4 * 6 + 9 * 6 * 6) * 4, 4 * 6 * 4
SECOND_BLOCK = 2 * 9 * 6 * 6 * 4
HEAD = 6 * 3


def fixed(linear, margin):
    """Let a linear layer always give this bias."""
    nn.init.zeros_(linear.weight)
    with torch.no_grad():
        linear.bias.copy_(torch.as_tensor(margin, dtype=torch.float32))


def macs(model, **shape):
    with torch.no_grad(), rd.trace() as trace:
        model.eval()(torch.rand(2, 1, 8, 8))
    return trace.macs().tolist()


@pytest.mark.parametrize(("first", "second"), BOTH)
def test_macs_of_convnet_aig(first, second):
    model = ConvNetAIG(**SHAPE, widths=(4, 6), blocks=1)
    for block, run in zip(model.blocks, (first, second), strict=True):
        fixed(block.gate.choose, [0.0, 1.0 if run else -1.0])
    gate = 4 * 16 + 16 * 2
    always = STEM + 2 * gate + HALVING_SHORTCUT + HEAD
    assert macs(model) == [always + first * BLOCK + second * HALVING_BRANCH] * 2


@pytest.mark.parametrize(("units", "scores"), [(1, [0.995, 0.5]), (2, [0.5, 0.6]), (3, [0.1, 0.2])])
def test_macs_of_act_resnet(units, scores):
    model = ActResNet(**SHAPE, widths=(4, 6), blocks=(1, 3))
    for score, h in zip(model.stages[1].scores, scores, strict=True):
        fixed(score.linear, torch.logit(torch.tensor([h])))
    always = STEM + BLOCK + HALVING_BRANCH + HALVING_SHORTCUT + HEAD
    asked = min(units, 2)  # the last unit has no score
    assert macs(model) == [always + (units - 1) * SECOND_BLOCK + asked * 6] * 2


def test_convnet_aig_starts_with_most_gates_open_and_draws_in_training_only():
    torch.manual_seed(0)
    model = ConvNetAIG(**SHAPE)
    x = torch.rand(64, 1, 28, 28)
    with rd.trace() as trace:
        model(x)
    chances = torch.stack([torch.sigmoid(gate.margin) for gate in trace.decisions.values()])
    assert chances.mean().item() == pytest.approx(1 / (1 + 2.718281828 ** (0.1 - 2.0)), abs=0.01)
    model.eval()
    assert torch.equal(model(x), model(x))
    with rd.estimator("gumbel"):
        assert not torch.equal(model(x), model(x))


def test_ponder_cost_adds_the_stages():
    torch.manual_seed(0)
    model, x = ActResNet(**SHAPE, widths=(4, 6, 8), blocks=(1, 3, 2)).eval(), torch.rand(2, 1, 8, 8)
    for stage, scores in ((1, [0.5, 0.6]), (2, [0.2])):
        for score, h in zip(model.stages[stage].scores, scores, strict=True):
            fixed(score.linear, torch.logit(torch.tensor([h])))
    with rd.trace() as trace:
        logits = model(x)
    y = torch.zeros(2, dtype=torch.long)
    loss = ponder_cost(weight=0.1)(logits, y, trace, 0.5)
    cost = (2 + 0.5) + (2 + 0.8)
    torch.testing.assert_close(loss, F.cross_entropy(logits, y) + 0.1 * cost)
