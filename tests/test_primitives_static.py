"""Own kernels: one convolution with a group per sample is each sample's own convolution."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import robustdyn as rd
from robustdyn.primitives import conv_own

BATCH, INPUTS, OUTPUTS = 3, 2, 4


class Own(nn.Module):
    """Writes a kernel for each sample from its mean, and convolves with it."""

    def __init__(self, size, stride):
        super().__init__()
        self.size, self.stride = size, stride
        self.write = nn.Linear(INPUTS, OUTPUTS * INPUTS * size * size)

    def kernels(self, x):
        return self.write(x.mean((2, 3))).unflatten(1, (OUTPUTS, INPUTS, self.size, self.size))

    def forward(self, x):
        return conv_own(x, self.kernels(x), stride=self.stride)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [1, 3])
def test_each_sample_is_convolved_with_its_own_kernel(size, stride, layout):
    model = Own(size, stride)
    x = torch.randn(BATCH, INPUTS, 7, 6).contiguous(memory_format=layout)
    alone = [
        F.conv2d(sample[None], kernel, stride=stride, padding=size // 2)
        for sample, kernel in zip(x, model.kernels(x), strict=True)
    ]
    torch.testing.assert_close(model(x), torch.cat(alone))


@torch.no_grad()
def test_each_sample_costs_what_it_costs_alone():
    model, x = Own(3, 2), torch.randn(BATCH, INPUTS, 8, 8)
    with rd.trace() as trace:
        dense = model(x)
    with rd.execution("sparse"), FlopCounterMode(display=False) as counter:
        sparse = model(x[:1])
    torch.testing.assert_close(dense[:1], sparse)
    kernel = OUTPUTS * INPUTS * 9
    assert trace.macs().tolist() == [INPUTS * kernel + 4 * 4 * kernel] * BATCH
    assert counter.get_total_flops() / 2 == trace.max_macs()


def test_the_gradient_passes_the_kernel_and_the_map():
    x = torch.randn(BATCH, INPUTS, 5, 5, requires_grad=True)
    weight = torch.randn(BATCH, OUTPUTS, INPUTS, 3, 3, requires_grad=True)
    conv_own(x, weight)[1].square().sum().backward()
    for tensor in (x, weight):
        touched = tensor.grad.flatten(1).abs().amax(1) > 0
        assert touched.tolist() == [False, True, False]
