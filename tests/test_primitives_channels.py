"""Masked channels and partial sums: both executions agree, and cost what is kept."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import robustdyn as rd
from robustdyn.primitives import masked_channels, partial_conv
from robustdyn.primitives.channels import union_share

GATES = {
    "none": torch.full((3, 8), -1.0),
    "all": torch.full((3, 8), 1.0),
    "some": torch.randn(3, 8, generator=torch.Generator().manual_seed(2)),
    "mixed": torch.stack([-torch.ones(8), torch.ones(8), torch.linspace(-1, 1, 8)]),
}


def _norm(channels, rank):
    norm = (nn.BatchNorm2d if rank == 4 else nn.BatchNorm1d)(channels)
    nn.init.uniform_(norm.bias, 1, 2)  # so that a mask before it would show
    nn.init.uniform_(norm.running_mean, -1, 1)
    return norm


class Convolutions(nn.Module):
    """Two gated convolutions whose sum a third reads: its inputs are the union."""

    def __init__(self, margin, stride):
        super().__init__()
        self.margin = margin
        self.first = nn.Conv2d(3, 8, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(8, 8, 3, 1, 1, bias=False)
        self.third = nn.Conv2d(8, 4, 1, bias=False)
        self.norms = nn.ModuleList(_norm(8, 4) for _ in range(2))

    def forward(self, x):
        a = rd.decide("a", self.margin[: len(x)], kind="channel")
        b = rd.decide("b", self.margin[: len(x)].roll(3, 1), kind="channel")
        x = F.relu(masked_channels(self.first, x, outputs=a, norm=self.norms[0]))
        y = masked_channels(self.second, x, outputs=b, inputs=[a], norm=self.norms[1])
        return masked_channels(self.third, x + y, inputs=[a, b])


class Scaled(nn.Module):
    """Two layers with all that can follow one: scale, shift, residual, ReLU."""

    def __init__(self, margin, layers, norm):
        super().__init__()
        self.margin, self.norm = margin, norm
        self.layers = nn.ModuleList(layers)
        self.shift = nn.Parameter(torch.randn(8))

    def forward(self, x):
        gate = rd.decide("gate", self.margin[: len(x)], kind="channel")
        scale = F.softplus(gate.margin)
        first, second = self.layers
        x = masked_channels(first, x, outputs=gate, norm=self.norm, scale=scale, shift=self.shift)
        y = masked_channels(second, x, inputs=[gate], shift=self.shift, residual=x, relu=True)
        return masked_channels(second, y, outputs=gate, residual=x)


class Linears(nn.Module):
    """Blocks of two hidden units."""

    def __init__(self, margin):
        super().__init__()
        self.margin = margin
        self.first, self.second = nn.Linear(5, 16), nn.Linear(16, 4)

    def forward(self, x):
        gate = rd.decide("gate", self.margin[: len(x)], kind="channel")
        h = masked_channels(self.first, x, outputs=gate, norm=None)
        return masked_channels(self.second, F.relu(h), inputs=[gate])


class Partial(nn.Module):
    def __init__(self, shift, stride, norm=None, relu=False):
        super().__init__()
        self.shift = shift
        self.conv = nn.Conv2d(8, 6, 3, stride, 1, bias=False)
        self.norm, self.relu = norm, relu

    def forward(self, x):
        def gate(partial):
            return rd.decide("gate", partial + self.shift, kind="channel")

        return partial_conv(self.conv, x, gate, parts=4, norm=self.norm, relu=self.relu)


def _changed(norm):
    """The norm with statistics and parameters that are not those it starts with."""
    for tensor in norm.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 2.0)
    return norm


def _cases():
    for pattern, margin in GATES.items():
        yield f"linear {pattern}", Linears(margin), (3, 5)
        linear = [nn.Linear(5, 8), nn.Linear(8, 8)]
        yield f"linear scaled {pattern}", Scaled(margin, linear, None), (3, 5)
        convs = [nn.Conv2d(5, 8, 1, bias=False), nn.Conv2d(8, 8, 3, 1, 1, bias=False)]
        for norm in (None, nn.BatchNorm2d(8), nn.InstanceNorm2d(8)):  # the last cannot fold
            case = f"convolutions scaled {pattern}, {type(norm).__name__}"
            norm = None if norm is None else _changed(norm)
            yield case, Scaled(margin, convs, norm), (3, 5, 6, 6)
        for stride, size in ((1, 5), (2, 5), (2, 8)):
            case = f"convolutions {pattern}, stride {stride}, size {size}"
            yield case, Convolutions(margin, stride), (3, 3, size, size)
    for shift in (-100.0, 0.0, 100.0):
        for stride, size in ((1, 5), (2, 5), (2, 8)):
            case = f"partial {shift}, stride {stride}, size {size}"
            yield case, Partial(shift, stride), (3, 8, size, size)
        for norm in (nn.BatchNorm2d(6), nn.GroupNorm(2, 6)):  # the second cannot be folded
            for relu in (False, True):
                case = f"partial {shift}, {type(norm).__name__}, relu {relu}"
                yield case, Partial(shift, 1, _changed(norm), relu), (3, 8, 5, 5)


CASES = {name: (model.eval(), shape) for name, model, shape in _cases()}


def _inputs(shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_dense_equals_sparse_and_every_sample_costs_what_runs(case):
    model, shape = CASES[case]
    x = _inputs(shape)
    with rd.trace() as trace:
        dense = model(x)
    with rd.execution("sparse"), rd.trace() as marked:
        sparse = model(x)
    assert marked.sparse
    torch.testing.assert_close(dense, sparse, rtol=1e-4, atol=1e-5)
    for k, macs in enumerate(trace.macs()):
        if hasattr(model, "margin"):
            model.margin = model.margin.roll(-k, 0)  # sample k alone, with its own gates
        with rd.execution("sparse"), FlopCounterMode(display=False) as counter:
            alone = model(x[k : k + 1])
        if hasattr(model, "margin"):
            model.margin = model.margin.roll(k, 0)
        torch.testing.assert_close(alone[0], dense[k], rtol=1e-4, atol=1e-5)
        assert macs.item() == pytest.approx(counter.get_total_flops() / 2, abs=1e-6)


@torch.no_grad()
def test_a_convolution_costs_kept_outputs_times_live_inputs_of_each_sample():
    """The product is that of each sample: batch means would give another number."""
    model, shape = CASES["convolutions mixed, stride 1, size 5"]
    with rd.trace() as trace:
        model(_inputs(shape))
    a = model.margin > 0
    b = a.roll(3, 1)
    union = (a | b).sum(1)
    a, b = a.sum(1), b.sum(1)
    expected = 25 * (9 * 3 * a + 9 * a * b + 4 * union)
    assert trace.macs().tolist() == pytest.approx(expected.tolist())
    assert len(set(expected.tolist())) == 3
    assert trace.max_macs() == 25 * (9 * 3 * 8 + 9 * 8 * 8 + 4 * 8)


@torch.no_grad()
def test_a_closed_channel_is_zero_and_not_what_the_norm_makes_of_zero():
    margin = torch.tensor([[1.0, -1.0]])
    conv, norm = nn.Conv2d(1, 2, 1, bias=False), _norm(2, 4).eval()
    gate = rd.decide("gate", margin, kind="channel")
    y = masked_channels(conv, torch.zeros(1, 1, 2, 2), outputs=gate, norm=norm)
    assert (y[:, 1] == 0).all()
    torch.testing.assert_close(y[:, 0], norm(torch.zeros(1, 2, 2, 2))[:, 0])


def test_the_union_is_the_chance_that_any_gate_keeps_a_channel():
    margins = [torch.randn(4, 6, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    gates = [rd.decide(f"gate{k}", m, kind="channel") for k, m in enumerate(margins)]
    share = union_share(gates)
    closed = torch.stack([1 - torch.sigmoid(m) for m in margins]).prod(0)
    torch.testing.assert_close(share.soft, (1 - closed).mean(1))
    kept = torch.stack([m > 0 for m in margins]).any(0)
    torch.testing.assert_close(share.hard, kept.double().mean(1))
    (gradient,) = torch.autograd.grad(share.soft.sum(), margins[1])
    assert (gradient > 0).all()


def test_one_gate_is_its_own_union():
    gate = rd.decide("gate", torch.randn(2, 4), kind="channel")
    assert union_share([gate]).decision is gate


@pytest.mark.parametrize("shift", [-100.0, 0.0, 100.0])
@torch.no_grad()
def test_a_partial_sum_is_counted_once(shift):
    model, shape = CASES[f"partial {shift}, stride 1, size 5"]
    x = _inputs(shape)
    with rd.trace() as trace:
        y = model(x)
    whole = 25 * 9 * 8 * 6
    kept = trace.decisions["gate"].kept.double().mean((1, 2, 3))
    assert trace.macs().tolist() == pytest.approx((whole * (1 / 4 + 3 / 4 * kept)).tolist())
    assert trace.max_macs() == whole
    if shift == 100:
        torch.testing.assert_close(y, model.conv(x))
    if shift == -100:
        torch.testing.assert_close(y, F.conv2d(x[:, :2], model.conv.weight[:, :2], padding=1))


@torch.no_grad()
def test_pixels_and_channels_are_gated_on_their_own():
    """A gate that is no product of a channel mask and a position mask still costs its mean."""
    model, shape = CASES["partial 0.0, stride 1, size 5"]
    with rd.trace() as trace:
        model(_inputs(shape))
    kept = trace.decisions["gate"].kept[0]  # (O, H', W')
    separable = kept.any(2).any(1)[:, None, None] & kept.any(0)
    assert 0 < kept.sum() < separable.sum()


def test_other_layers_are_refused():
    conv, x = nn.Conv1d(1, 1, 1), torch.rand(1, 1, 3)
    with pytest.raises(TypeError, match="not Conv1d"):
        masked_channels(conv, x)
    with pytest.raises(TypeError, match="not Conv1d"):
        partial_conv(conv, x, lambda y: y, parts=1)
