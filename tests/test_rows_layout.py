"""Rows of channels-last tensors are moved as they lie in memory, and stay channels-last."""

import pytest
import torch

from robustdyn.kernels import gather_rows, scatter_rows
from robustdyn.primitives.layout import zeros_for

LAYOUTS = [torch.contiguous_format, torch.channels_last]
ROWS = torch.tensor([0, 2, 3])


def values(layout, count=5):
    draw = torch.Generator().manual_seed(count)
    return torch.randn(count, 4, 3, 2, generator=draw).to(memory_format=layout)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gathered_rows_keep_the_layout(layout):
    x = values(layout)
    found = gather_rows(x, ROWS)
    assert torch.equal(found, x[ROWS])
    assert found.is_contiguous(memory_format=layout)
    torch.library.opcheck(torch.ops.robustdyn.gather_rows.default, (x, ROWS))


@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("from_layout", LAYOUTS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_scattered_rows_take_the_layout_of_the_target(layout, from_layout, add):
    out, y = values(layout), values(from_layout, 3)
    expected = out.clone()
    expected[ROWS] = y + expected[ROWS] if add else y
    found = scatter_rows(y, ROWS, out, add=add)
    assert torch.equal(found, expected)
    assert found.is_contiguous(memory_format=layout)
    assert scatter_rows(y, ROWS, out, add=add, in_place=True) is out
    assert torch.equal(out, expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_pass_through_either_layout(layout):
    x = values(layout).double().requires_grad_()
    y = values(layout, 3).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: gather_rows(x, ROWS), (x,))
    assert torch.autograd.gradcheck(lambda y, x: scatter_rows(y, ROWS, x), (y, x))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_zeros_lie_as_the_rows_they_wait_for(layout):
    zeros = zeros_for(values(layout), 7)
    assert zeros.shape == (7, 4, 3, 2)
    assert zeros.is_contiguous(memory_format=layout)
    assert not zeros.any()
