"""Models that gate channels: their MACs by hand, and what is special in each mechanism."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import robustdyn as rd
from robustdyn import gates
from robustdyn.models.instance.channel_gated import BoostedConv, BoostedNet, saliency_budget
from robustdyn.models.instance.channel_gating_net import (
    ChannelGatingNet,
    GatedConv,
    threshold_target,
)
from robustdyn.models.instance.conditional_mlp import ConditionalMLP, block_rates

MEAN, STD = (0.5,), (0.5,)


def _first(counts):
    """An estimator that keeps the first `counts[k]` entries of every sample at decision k."""
    left = iter(counts)

    def keep(margin):
        flat = torch.arange(margin[0].numel()) < next(left)
        return flat.reshape(margin[0].shape).expand_as(margin).to(margin.dtype)

    return keep


@torch.no_grad()
def _macs(model, x, counts):
    """The MACs of one sample with chosen decisions; they must be what sparse execution runs."""
    model.eval()
    with gates.using(_first(counts)), rd.trace() as trace:
        dense = model(x)
    (macs,) = trace.macs().tolist()
    with gates.using(_first(counts)), rd.execution("sparse"):
        with FlopCounterMode(display=False) as counter:
            sparse = model(x)
    assert macs == pytest.approx(counter.get_total_flops() / 2, rel=1e-9)
    torch.testing.assert_close(dense, sparse, rtol=1e-4, atol=1e-5)
    return round(macs, 6)


# Conditional MLP: 12 inputs, hidden layers of 6 and 8 units in blocks of 2, 3 classes.


def _mlp():
    torch.manual_seed(0)
    return ConditionalMLP(3, 12, MEAN, STD, hidden=(6, 8), block=2, rank=5)


@pytest.mark.parametrize(("first", "second"), [(0, 0), (1, 4), (2, 3), (3, 4), (3, 0)])
def test_mlp_macs(first, second):
    predictors = 5 * (12 + 3) + 5 * (6 + 4)
    layers = 12 * 2 * first + 2 * first * 2 * second + 2 * second * 3
    assert _macs(_mlp(), torch.rand(1, 1, 3, 4), [first, second]) == predictors + layers


def test_mlp_maximum():
    with rd.trace() as trace:
        _mlp().eval()(torch.rand(2, 1, 3, 4))
    assert trace.max_macs() == 5 * 15 + 5 * 10 + 12 * 6 + 6 * 8 + 8 * 3
    assert {d.margin.shape[1] for d in trace.decisions.values()} == {3, 4}


@torch.no_grad()
def test_mlp_a_closed_block_has_no_say():
    model, x = _mlp().eval(), torch.rand(1, 1, 3, 4)

    def logits():
        with gates.using(_first([2, 4])):
            return model(x)

    before = logits()
    model.layers[0].weight[4:] += 1
    assert torch.equal(logits(), before)
    model.layers[0].weight[:4] += 1
    assert not torch.equal(logits(), before)


def _trace_of(margins):
    with rd.trace() as trace:
        for k, margin in enumerate(margins):
            rd.decide(f"gate{k}", margin, kind="channel")
    return trace


def test_mlp_loss_has_two_mean_terms_and_a_variance():
    chance = torch.tensor([[0.9, 0.3], [0.1, 0.7]])
    loss = block_rates(target=0.4, weight=2.0, spread=0.5)
    logits, y = torch.zeros(2, 10), torch.zeros(2, dtype=torch.long)
    trace = _trace_of([torch.logit(chance)])
    units = 2 * 0.1**2
    samples = (0.2**2 + 0.0) / 2
    variance = 0.32 + 0.08
    expected = torch.log(torch.tensor(10.0)) + 2 * (units + samples) - 0.5 * variance
    torch.testing.assert_close(loss(logits, y, trace, 1.0), expected)
    assert repr(loss) == "block_rates(target=0.4, weight=2.0, spread=0.5)"


# Feature boosting and suppression: a stem of 4, then two blocks of 8 channels, the first of which
# halves the size. 8 x 8 inputs: 4 x 4 after the stem, 2 x 2 in the blocks.


def _boosted():
    torch.manual_seed(0)
    return BoostedNet(3, 1, MEAN, STD, widths=(4, 8), blocks=2)


@pytest.mark.parametrize("kept", [[0, 0, 0, 0], [3, 5, 2, 7], [8, 4, 8, 1], [8, 8, 8, 8]])
def test_boosted_macs(kept):
    a, b, c, d = kept
    union = max(b, d)  # the first b or the first d channels of the block's input and its branch
    stem = 16 * 9 * 4
    predictors = 4 * 8 + 3 * 8 * 8
    first = 4 * (9 * 4 * a + 9 * a * b + 4 * b)  # the last is the shortcut's 1x1 convolution
    second = 4 * (9 * b * c + 9 * c * d)
    assert (
        _macs(_boosted(), torch.rand(1, 1, 8, 8), kept)
        == stem + predictors + first + second + 3 * union
    )


def test_boosted_maximum():
    with rd.trace() as trace:
        _boosted().eval()(torch.rand(2, 1, 8, 8))
    blocks = 4 * (9 * 4 * 8 + 9 * 64 + 4 * 8) + 4 * 2 * 9 * 64
    assert trace.max_macs() == 576 + 224 + blocks + 24


@torch.no_grad()
def test_boosted_saliency_scales_what_is_kept():
    conv = BoostedConv(2, 6).eval()
    torch.nn.init.normal_(conv.predict.bias)
    torch.nn.init.normal_(conv.shift)
    x, residual = torch.rand(3, 2, 5, 5), torch.randn(3, 6, 5, 5)
    gate = conv.gate(x, "gate")
    y = conv(x, gate, [], residual)
    margin = x.mean((2, 3)) / (1 + 1e-5) ** 0.5 @ conv.predict.weight.T + conv.predict.bias
    torch.testing.assert_close(gate.margin, margin)
    whole = F.softplus(margin)[:, :, None, None] * conv.norm(conv.conv(x))
    whole = whole + conv.shift[:, None, None]
    kept = torch.where((margin > 0)[:, :, None, None], whole, 0.0)
    torch.testing.assert_close(y, (kept + residual).relu())
    assert gate.kept.any()
    assert not gate.kept.all()


@torch.no_grad()
def test_boosted_an_identity_block_reads_the_union_of_what_feeds_it():
    model = _boosted().eval()
    seen = []
    model.head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    for kept, live in (([8, 3, 8, 5], 5), ([8, 6, 8, 2], 6)):
        with gates.using(_first(kept)):
            model(torch.rand(2, 1, 8, 8))
        assert (seen[-1][:, live:] == 0).all()


def test_boosted_loss_rewards_gates_that_depend_on_the_input():
    logits, y = torch.zeros(2, 10), torch.zeros(2, dtype=torch.long)
    loss = saliency_budget(target=0.5, weight=1.0, spread=1.0, sparsity=0.0)

    def value(margin):
        with rd.trace() as trace:
            gate = rd.decide("gate", margin, kind="channel")
            with rd.region(gate.share()):
                torch.nn.Linear(3, 4)(torch.rand(2, 3))
        return loss(logits, y, trace, 1.0)

    fixed = torch.tensor([[4.0, -4.0], [4.0, -4.0]])
    varied = torch.tensor([[4.0, -4.0], [-4.0, 4.0]])
    assert value(varied) < value(fixed)


# Channel gating: a stem of 4, then two blocks of 8 channels; sizes as above.


def _gating():
    torch.manual_seed(0)
    return ChannelGatingNet(3, 1, MEAN, STD, widths=(4, 8), blocks=2)


@pytest.mark.parametrize("kept", [[0, 0, 0, 0], [5, 0, 32, 11], [32, 32, 32, 32]])
def test_gating_macs(kept):
    """Of 8 channels x 2 x 2 pixels, the k-th gate keeps kept[k] sums to be finished."""
    stem, shortcut, head = 16 * 9 * 4, 4 * 4 * 8, 8 * 3
    partial = 32 * 9 * 1 + 3 * 32 * 9 * 2  # from 1 of 4 and from 2 of 8 input channels
    rest = kept[0] * 9 * 3 + sum(kept[1:]) * 9 * 6
    expected = stem + shortcut + head + partial + rest
    assert _macs(_gating(), torch.rand(1, 1, 8, 8), kept) == expected


def test_gating_maximum_is_that_of_the_plain_network():
    with rd.trace() as trace:
        _gating().eval()(torch.rand(2, 1, 8, 8))
    assert trace.max_macs() == 576 + 128 + 24 + 32 * 9 * 4 + 3 * 32 * 9 * 8
    assert all(d.margin.shape == (2, 8, 2, 2) for d in trace.decisions.values())


@torch.no_grad()
def test_gating_finishes_the_sums_whose_normalised_part_is_above_the_threshold():
    conv = GatedConv(4, 6).eval()
    torch.nn.init.normal_(conv.threshold, 0, 0.3)
    x = torch.randn(2, 4, 5, 5)
    with rd.trace() as trace:
        y = conv(x, "gate")
    partial = F.conv2d(x[:, :1], conv.conv.weight[:, :1], padding=1)
    finish = conv.gate_norm(partial) > conv.threshold[:, None, None]
    assert torch.equal(trace.decisions["gate"].kept, finish)
    expected = conv.norm(torch.where(finish, conv.conv(x), partial))
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)


def test_gating_loss_reads_the_thresholds_from_the_margins():
    """In training the loss pulls every threshold to the target, and knows it exactly."""
    conv = GatedConv(4, 6)
    torch.nn.init.normal_(conv.threshold)
    with rd.trace() as trace:
        logits = conv(torch.randn(8, 4, 5, 5), "gate").mean((2, 3))
    y = torch.zeros(8, dtype=torch.long)
    loss = threshold_target(target=0.5, weight=3.0, spread=0.0)(logits, y, trace, 1.0)
    expected = F.cross_entropy(logits, y) + 3 * (conv.threshold - 0.5).square().sum()
    torch.testing.assert_close(loss, expected)
