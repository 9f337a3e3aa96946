"""Kernels as operators of torch: schemas, counters, gradients, and who notices them."""

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.library import opcheck
from torch.utils.flop_counter import FlopCounterMode

import robustdyn as rd
from robustdyn import kernels
from robustdyn.kernels import KERNELS
from robustdyn.kernels.native import VARIABLE
from robustdyn.kernels.watchers import unwatched
from robustdyn.macs import macs_of


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def _calls():
    """Arguments for every operator: name -> (args, kwargs, MACs)."""
    x, w, bias = torch.randn(2, 5, 6, 4), torch.randn(8, 4, 3, 3), torch.randn(8)
    mask, residual = torch.rand(2, 5, 6) < 0.5, torch.randn(2, 5, 6, 8)
    on, shape = int(mask.sum()), {"padding": 1}
    single = torch.randn(4, 1, 3, 3)
    live, kept = torch.rand(2, 4) < 0.5, torch.rand(2, 8) < 0.5
    pairs = int((live.sum(1) * kept.sum(1)).sum())
    entries = torch.rand(2, 5, 6, 8) < 0.5
    rows, keep = torch.tensor([1, 3]), torch.tensor([[0, 2], [1, 2]])
    order, offsets = kernels.route_experts(torch.tensor([[0, 2], [2, 1]]), 3)
    h, wi, wh = torch.randn(2, 3), torch.randn(9, 4), torch.randn(9, 3)
    fresh, flat = torch.zeros(2, 5, 6, 8), torch.randn(2, 3, 4)
    scale = torch.randn(4)
    halves, blocks = torch.rand(4, 2) < 0.5, torch.rand(4, 3) < 0.5
    tokens = torch.randn(4, 4)
    one = torch.tensor([True, False])
    return {
        "mask_compact": ((mask,), {"dtype": torch.int32}, 0),
        "mask_dilate": ((mask, 3), {"stride": 2}, 0),
        "gather_rows": ((tokens, rows), {}, 0),
        "scatter_rows": ((tokens[:2], rows, tokens), {"add": True}, 0),
        "scatter_rows_": ((tokens[:2].clone(), rows, tokens), {}, 0),
        "masked_conv2d": ((x, w, mask, bias, residual), {"relu": True, **shape}, on * w.numel()),
        "masked_conv2d_out": ((x, w, mask), {"out": fresh, **shape}, on * w.numel()),
        "masked_conv2d_input_grad": ((residual, w, mask, [5, 6]), shape, on * w.numel()),
        "masked_depthwise_conv2d": ((x, single, mask), shape, on * single.numel()),
        "masked_depthwise_conv2d_out": (
            (x, single, mask),
            {"out": fresh[..., :4].contiguous(), **shape},
            on * single.numel(),
        ),
        "masked_affine_act": ((x, scale, scale, mask), {"relu": True}, 0),
        "masked_affine_act_out": ((x, scale, scale, mask), {"out": torch.zeros_like(x)}, 0),
        "channel_masked_conv2d": ((x, w, live, kept, bias), shape, pairs * 9 * 30),
        "entry_masked_conv2d": (
            (x, w, entries, residual, bias, bias),
            {"relu": True, **shape},
            int(entries.sum()) * 36,
        ),
        "thin_conv2d": ((x, w[:1], bias[:1]), shape, 2 * 5 * 6 * w[0].numel()),
        "masked_linear": (
            (tokens, wi, halves, blocks, None),
            {},
            2 * 3 * int((halves.sum(1) * blocks.sum(1)).sum()),
        ),
        "route_experts": ((torch.tensor([[0, 2], [2, 1]]), 3), {}, 0),
        "grouped_matmul": ((tokens, torch.randn(3, 4, 5), offsets), {}, 4 * 4 * 5),
        "combine_experts": ((tokens, order, torch.rand(2, 2)), {}, 0),
        "masked_rnn_step": (
            (flat[:, 0], [h, h[:, :2]], one, wi, wh, None, None, wh[:2], None),
            {"cell": "gru"},
            9 * 7 + 6,
        ),
        "gather_tokens": ((flat, keep), {}, 0),
        "scatter_tokens": ((flat[:, :2].clone(), keep, flat), {}, 0),
    }


OPERATORS = list(_calls())


def test_every_kernel_has_an_operator():
    assert {name.removesuffix("_out").removesuffix("_") for name in OPERATORS} == set(KERNELS)
    assert all(kernel.operator and kernel.__doc__ for kernel in KERNELS.values())


@pytest.mark.parametrize("name", OPERATORS)
def test_opcheck(name):
    args, kwargs, _ = _calls()[name]
    if "out" not in name and not name.endswith("_"):
        args = tuple(
            a.requires_grad_() if torch.is_tensor(a) and a.is_floating_point() else a for a in args
        )
    utils = ("test_schema", "test_autograd_registration", "test_faketensor")
    opcheck(getattr(torch.ops.robustdyn, name).default, args, kwargs, test_utils=utils)


@pytest.mark.parametrize("name", OPERATORS)
@torch.no_grad()
def test_both_counters_see_the_macs(name):
    args, kwargs, macs = _calls()[name]
    run = getattr(torch.ops.robustdyn, name)
    with FlopCounterMode(display=False) as counter:
        run(*args, **kwargs)
    assert counter.get_total_flops() == 2 * macs
    assert macs_of(lambda: run(*args, **kwargs)) == macs


@pytest.mark.parametrize("add", [False, True])
def test_gradcheck_of_moves(add):
    x, y, rows = torch.randn(4, 3), torch.randn(2, 3), torch.tensor([1, 2])
    tokens, keep = torch.randn(2, 4, 3), torch.tensor([[0, 3], [1, 2]])
    tensors = [t.double().requires_grad_() for t in (x, y, tokens)]
    assert torch.autograd.gradcheck(lambda x: kernels.gather_rows(x, rows), tensors[:1])
    assert torch.autograd.gradcheck(
        lambda x, y: kernels.scatter_rows(y, rows, x, add=add), tensors[:2]
    )
    assert torch.autograd.gradcheck(lambda t: kernels.gather_tokens(t, keep), tensors[2:])
    assert torch.autograd.gradcheck(
        lambda t: kernels.scatter_tokens(t[:, :2], keep, t), tensors[2:]
    )


def test_gradcheck_of_affine():
    x, residual = torch.randn(2, 1, 3, 3, 2).double()
    inputs = [t.clone().requires_grad_() for t in (x, *torch.randn(2, 2).double(), residual)]
    mask = torch.rand(1, 3, 3) < 0.5
    assert torch.autograd.gradcheck(
        lambda x, a, b, r: kernels.masked_affine_act(x, a, b, mask, r, relu=True, fill="copy"),
        inputs,
    )


def test_gradcheck_through_the_reference():
    x, w = torch.randn(2, 4, 4, 3).double(), torch.randn(5, 3, 3, 3).double()
    live, kept = torch.rand(2, 3) < 0.5, torch.rand(2, 5) < 0.5
    entries = torch.rand(2, 4, 4, 5) < 0.5
    weights = [t.requires_grad_() for t in (x, w)]
    assert torch.autograd.gradcheck(
        lambda x, w: kernels.channel_masked_conv2d(x, w, live, kept, padding=1), weights
    )
    assert torch.autograd.gradcheck(
        lambda x, w: kernels.entry_masked_conv2d(x, w, entries, padding=1), weights
    )
    affine = [torch.randn(5).double().requires_grad_() for _ in range(2)]
    added = torch.randn(2, 4, 4, 5).double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, w, r, a, b: kernels.entry_masked_conv2d(
            x, w, entries, r, a, b, relu=True, padding=1
        ),
        [*weights, added, *affine],
    )
    assert torch.autograd.gradcheck(
        lambda x, w: kernels.thin_conv2d(x, w, stride=2, padding=1), weights
    )
    rows, matrix = (t.detach().clone().requires_grad_() for t in (x[0, 0], w[..., 0, 0]))
    on = torch.rand(len(rows), len(matrix)) < 0.5
    assert torch.autograd.gradcheck(
        lambda x, w: kernels.masked_linear(x, w, None, on), (rows, matrix)
    )
    h, wi, wh = torch.randn(2, 3).double(), torch.randn(9, 3).double(), torch.randn(9, 3).double()
    on = torch.tensor([True, False])
    step = [t.requires_grad_() for t in (torch.randn(2, 3).double(), h, wi, wh)]
    assert torch.autograd.gradcheck(
        lambda x, h, wi, wh: kernels.masked_rnn_step(x, [h], on, wi, wh)[0], step
    )
    read = [t.requires_grad_() for t in (torch.randn(2, 2).double(), torch.randn(2, 3).double())]
    assert torch.autograd.gradcheck(
        lambda x, h, wi, wh, r, w: kernels.masked_rnn_step(
            x, [h, r], on, wi, wh, None, None, w, None
        ),
        [*step, *read],
    )


def test_recording_says_which_implementation_ran(monkeypatch):
    monkeypatch.setenv(VARIABLE, "off")
    x, w, mask = torch.randn(1, 4, 4, 2), torch.randn(3, 2, 1, 1), torch.zeros(1, 4, 4).bool()
    with torch.no_grad(), rd.execution("sparse", report=True) as report:
        for _ in range(2):
            kernels.masked_conv2d(x, w, mask)
        kernels.masked_conv2d(x, w, ~mask)
        kernels.gather_rows(x, torch.tensor([0]))
    assert report.rows() == [
        ("gather_rows", "torch", 1),
        ("masked_conv2d", "chunked", 2),
        ("masked_conv2d", "torch", 1),
    ]
    assert "masked_conv2d" in str(report)
    kernels.gather_rows(x, torch.tensor([0]))
    assert report.rows()[0] == ("gather_rows", "torch", 1)


@torch.no_grad()
def test_a_kernel_is_an_operator_for_whoever_watches():
    x, rows = torch.randn(4, 3), torch.tensor([1, 3])
    w, mask = torch.randn(5, 3, 1, 1), torch.ones(4, 1, 1).bool()
    assert unwatched((x, [x], rows, None, 3))
    with torch.enable_grad():
        assert not unwatched((x, rows))
    with FlopCounterMode(display=False) as counter:
        kernels.masked_conv2d(x[:, None, None], w, mask)
    assert counter.get_total_flops() == 2 * 4 * 15
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(x), mode.from_tensor(rows)
    for arguments in (fake, (x.to("meta"), rows.to("meta"))):
        assert not unwatched(arguments)
        assert kernels.gather_rows(*arguments).shape == (2, 3)
    mapped = torch.vmap(lambda part: part * unwatched((part,)))(x)
    assert not mapped.any()
    with torch.profiler.profile() as profile:
        kernels.gather_rows(x, rows)
    assert "robustdyn::gather_rows" in {event.key for event in profile.key_averages()}
