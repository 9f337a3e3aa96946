"""The models that skip blocks: their MACs by hand for chosen decisions, and what is theirs."""

from itertools import product
from math import exp, log

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import robustdyn as rd
from robustdyn.models.instance.act_resnet import ActResNet, ponder_cost
from robustdyn.models.instance.blockdrop import LEAST_DEVIATION, BlockDrop, policy_reward
from robustdyn.models.instance.convnet_aig import ConvNetAIG
from robustdyn.primitives.halting import ENOUGH
from robustdyn.trace import Trace

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


@pytest.mark.parametrize(("first", "second"), BOTH)
def test_macs_of_blockdrop(first, second):
    model = BlockDrop(**SHAPE, widths=(4, 6), blocks=1, policy_widths=(2, 3))
    fixed(model.policy.linear, [1.0 if run else -1.0 for run in (first, second)])
    stem = 9 * 1 * 2 * 4  # of the policy: 4x4 inputs, 2x2 after the stem, then 1x1
    policy = stem + 2 * 9 * 2 * 2 * 4 + (9 * 2 * 3 + 9 * 3 * 3 + 2 * 3) + 3 * 2
    always = policy + STEM + HALVING_SHORTCUT + HEAD
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
    loss = ponder_cost(weight=0.1, spread=1.0)(logits, y, trace, 0.5)
    cost = (2 + 0.5) + (2 + 0.8)
    torch.testing.assert_close(loss, F.cross_entropy(logits, y) + 0.1 * cost)


def test_unequal_halting_scores_are_rewarded():
    scores = torch.tensor([0.4, 0.9]) * ENOUGH
    trace = Trace()
    for name, spent in (("a.unit1", scores), ("b.unit1", scores), ("b.unit2", 2 * scores)):
        trace.decisions[name] = rd.decision.Decision(
            name, "step", log(ENOUGH) - spent.log(), (spent < ENOUGH).float()
        )
    logits, y = torch.zeros(2, 3), torch.tensor([0, 1])
    plain, varied = (ponder_cost(weight=0.1, spread=s)(logits, y, trace, 0.5) for s in (0.0, 1.0))
    variance = 2 * 0.25**2 + 0.1**2  # the last scores are .8 and, at most, 1 of what is enough
    torch.testing.assert_close(plain - varied, torch.tensor(variance))


def test_blockdrop_decides_before_any_block():
    torch.manual_seed(0)
    model, x = BlockDrop(**SHAPE).eval(), torch.rand(2, 1, 28, 28)
    margins = []
    for _ in range(2):
        with torch.no_grad(), rd.trace() as trace:
            model(x)
        margins.append(torch.stack([gate.margin for gate in trace.decisions.values()]))
        for parameter in model.blocks.parameters():
            nn.init.normal_(parameter)
    assert torch.equal(*margins)


@pytest.mark.parametrize("training", [True, False])
def test_the_answer_teaches_the_policy_nothing_but_attacks_see_through_it(training):
    torch.manual_seed(0)
    model = BlockDrop(**SHAPE).train(training)
    with rd.estimator("gumbel"):
        logits = model(torch.rand(4, 1, 28, 28))
    weight = model.policy.linear.weight
    (gradient,) = torch.autograd.grad(logits.square().sum(), weight, allow_unused=True)
    assert (gradient is None) == training
    assert training or (gradient != 0).any()


def _policy_trace(margin, actions):
    """A trace of two blocks; the second sample runs none, so that the policy did act."""
    trace = Trace()
    for k in range(2):
        other = torch.tensor([-1.0])
        keep = torch.tensor([float(actions[k]), 0.0])
        trace.decisions[f"block{k}"] = rd.decision.Decision(
            f"block{k}", "skip", torch.cat([margin[k : k + 1], other]), keep
        )
    return trace


@pytest.mark.parametrize("right", [True, False])
def test_the_gradient_is_that_of_the_expected_reward(right):
    margin = torch.tensor([0.3, -0.4], requires_grad=True)
    y = torch.tensor([1, 0])
    logits = torch.tensor([[0.0, 30.0, 0.0] if right else [30.0, 0.0, 0.0], [30.0, 0.0, 0.0]])
    chance = torch.sigmoid(margin)
    loss = policy_reward(penalty=2.0, entropy=0.0, spread=0.0)
    total, expected = torch.zeros(2), torch.zeros(())
    for actions in BOTH:
        taken = torch.tensor(actions)
        likely = torch.where(taken, chance, 1 - chance).prod()
        reward = 1 - taken.float().mean() ** 2 if right else torch.tensor(-2.0)
        expected = expected + likely * reward
        value = loss(logits, y, _policy_trace(margin, actions), 1.0)
        (gradient,) = torch.autograd.grad(value, margin)
        total += likely.detach() * gradient
    (wanted,) = torch.autograd.grad(expected, margin)
    torch.testing.assert_close(total, -wanted / 2)  # the mean over two samples


def test_blocks_learn_from_the_last_back_to_the_first_after_random_actions():
    margin = torch.tensor([0.3, -0.4], requires_grad=True)
    logits, y = torch.zeros(2, 2, requires_grad=True), torch.tensor([1, 0])
    loss = policy_reward(penalty=2.0, entropy=0.1, spread=0.0)
    learns = []
    for progress in (0.3, 0.4, 0.6, 1.0):
        value = loss(logits, y, _policy_trace(margin, (True, False)), progress)
        (gradient,) = torch.autograd.grad(value, margin, allow_unused=True)
        learns.append(gradient is not None and (gradient != 0).tolist())
    assert learns == [False, [False, True], [True, True], [True, True]]


def test_full_inference_teaches_the_policy_nothing():
    margin = torch.ones(4, requires_grad=True)
    trace = Trace()
    trace.decisions["block0"] = rd.decision.Decision("block0", "skip", margin, torch.ones(4))
    logits, y = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    loss = policy_reward(penalty=2.0, entropy=0.1, spread=1.0)(logits, y, trace, 1.0)
    torch.testing.assert_close(loss, F.cross_entropy(logits, y))


def test_an_answer_is_right_to_the_degree_that_it_has_the_labels_probability():
    margin = torch.tensor([0.3, -0.4], requires_grad=True)
    logits, y = torch.zeros(2, 3), torch.tensor([1, 0])  # right to a third
    loss = policy_reward(penalty=2.0, entropy=0.0, spread=0.0)
    value = loss(logits, y, _policy_trace(margin, (True, True)), 1.0)
    (gradient,) = torch.autograd.grad(value, margin)
    # all blocks against the thresholded policy, which runs one of two
    advantage = (1 - 1.0) / 3 - (1 - 0.25) / 3
    likely = torch.sigmoid(margin.detach())
    torch.testing.assert_close(gradient, -advantage * (1 - likely) / 2)


def test_entropy_is_rewarded_and_too_little_variety_is_not():
    logits, y = torch.zeros(2, 3), torch.tensor([0, 0])

    def value(margins, **bonus):
        bonus = {"entropy": 0.0, "spread": 0.0} | bonus
        passed = _policy_trace(torch.tensor(margins), (True, False))
        return policy_reward(penalty=0.0, **bonus)(logits, y, passed, 1.0).item()

    other = 1 / (1 + exp(1.0))  # both chances of the second sample
    for margins in ((-1.0, -1.0), (3.0, -1.0), (0.0, 0.0)):  # of the first
        plain = value(margins)
        own = [1 / (1 + exp(-m)) for m in margins]
        doubts = [-p * log(p) - (1 - p) * log(1 - p) for p in (*own, other, other)]
        assert plain - value(margins, entropy=1.0) == pytest.approx(sum(doubts) / 4)
        lack = sum(max(LEAST_DEVIATION - abs(p - other) / 2, 0) for p in own) / 2
        assert value(margins, spread=1.0) - plain == pytest.approx(lack, abs=2e-4)
