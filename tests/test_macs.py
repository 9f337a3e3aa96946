"""The counter against closed forms, written by hand."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import robustdyn as rd

B, T, D, H, HEADS = 3, 5, 8, 6, 2


class Attention(nn.Module):
    def forward(self, x):
        return F.scaled_dot_product_attention(x, x, x)


class SelfAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(D, HEADS, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x)


def attention_macs(length, dim):
    return 2 * length * length * dim


CASES = {
    "linear": (nn.Linear(D, H), (D,), D * H),
    "linear over time": (nn.Linear(D, H), (T, D), T * D * H),
    "bilinear pooling is elementwise": (nn.Upsample(scale_factor=2, mode="bilinear"), (2, 4, 4), 0),
    "conv": (nn.Conv2d(4, 6, 3, padding=1), (4, 7, 7), 49 * 6 * 4 * 9),
    "strided conv": (nn.Conv2d(4, 6, 3, 2, 1), (4, 7, 7), 16 * 6 * 4 * 9),
    "depthwise conv": (nn.Conv2d(4, 4, 3, padding=1, groups=4), (4, 7, 7), 49 * 4 * 9),
    "transposed conv": (nn.ConvTranspose2d(4, 6, 2, 2), (4, 7, 7), 49 * 4 * 6 * 4),
    "lstm": (nn.LSTM(D, H, batch_first=True), (T, D), T * 4 * H * (D + H)),
    "two-layer bidirectional lstm": (
        nn.LSTM(D, H, 2, batch_first=True, bidirectional=True),
        (T, D),
        T * 2 * 4 * H * ((D + H) + (2 * H + H)),
    ),
    "gru": (nn.GRU(D, H, batch_first=True), (T, D), T * 3 * H * (D + H)),
    "rnn": (nn.RNN(D, H, batch_first=True), (T, D), T * H * (D + H)),
    "attention": (Attention(), (HEADS, T, D), HEADS * attention_macs(T, D)),
    "multi-head attention": (SelfAttention(), (T, D), 4 * T * D * D + attention_macs(T, D)),
    "transformer layer": (
        nn.TransformerEncoderLayer(D, HEADS, 16, batch_first=True),
        (T, D),
        4 * T * D * D + attention_macs(T, D) + 2 * T * D * 16,
    ),
}
# An elementwise model counts nothing; a linear layer keeps the trace from being empty.
MODES = {
    "grad": torch.enable_grad,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", CASES)
def test_closed_form(case, mode, dtype):
    module, shape, expected = CASES[case]
    model = nn.Sequential(module, nn.Identity()).eval().to(dtype)
    x = torch.rand(B, *shape, dtype=dtype)
    with MODES[mode](), rd.trace() as trace:
        with rd.region(rd.Share(lambda: torch.ones(B), lambda: torch.ones(B))):
            model(x)
        nn.Linear(1, 1).to(dtype)(torch.ones(B, 1, dtype=dtype))
    assert trace.macs().tolist() == [expected + 1] * B


@pytest.mark.parametrize("batch", [1, 2, 4, 8])
def test_agrees_with_torch_flop_counter(batch):
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Flatten(),
        nn.Linear(72, 4),
    )
    x = torch.rand(batch, 3, 11, 11).to(memory_format=torch.channels_last)
    with rd.trace() as trace:
        model(x)
    with FlopCounterMode(display=False) as counter:
        model(x)
    assert trace.macs().sum() == counter.get_total_flops() / 2
    assert trace.max_macs() == trace.macs()[0]


class WeightProduct(nn.Module):
    """Multiplies two weights, reads a buffer and starts from a learned state."""

    def __init__(self):
        super().__init__()
        self.u = nn.Parameter(torch.rand(4, 2))
        self.v = nn.Parameter(torch.rand(2, 6))
        self.state = nn.Parameter(torch.rand(4))
        self.register_buffer("basis", torch.rand(6, 4))

    def forward(self, x):
        weight = self.u @ self.v
        mixed = self.basis.t() @ self.basis
        return x @ weight + self.state.expand(len(x), -1) @ weight + x @ mixed @ weight


@pytest.mark.parametrize("batch", [1, 2, 4, 6])
def test_work_shared_by_the_batch_counts_in_full_for_each_sample(batch):
    with rd.trace() as trace:
        WeightProduct()(torch.rand(batch, 4))
    shared = 4 * 2 * 6 + 4 * 6 * 4
    each = 4 * 6 + 4 * 6 + 4 * 4 + 4 * 6
    assert trace.macs().tolist() == [shared + each] * batch


def test_backward_is_not_counted():
    model = nn.Linear(D, H)
    x = torch.rand(B, D, requires_grad=True)
    with rd.trace() as trace:
        model(x).sum().backward()
    assert trace.macs().tolist() == [D * H] * B


def test_an_operation_without_a_formula_is_an_error_that_names_it():
    @torch.library.custom_op("robustdyn_tests::double", mutates_args=())
    def double(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    class Custom(nn.Module):
        def forward(self, x):
            return nn.Linear(D, H)(double(x))

    x = torch.rand(B, D)
    with pytest.raises(rd.UserError, match="robustdyn_tests::double"), rd.trace():
        Custom()(x)
    rd.register_macs(torch.ops.robustdyn_tests.double, lambda x: x.numel())
    with rd.trace() as trace:
        Custom()(x)
    assert trace.macs().tolist() == [D + D * H] * B


def test_arithmetic_without_a_formula_is_an_error_not_a_silent_zero():
    class Distances(nn.Module):
        def forward(self, x):
            return torch.cdist(x, x)

    with pytest.raises(rd.UserError, match="cdist"), rd.trace():
        Distances()(torch.rand(10, 2))
