"""The other kernels against plain torch, and all of them as operators of torch."""

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.library import opcheck
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import robustdyn as rd
from robustdyn import kernels
from robustdyn.kernels import KERNELS, native
from robustdyn.kernels.native import ISAS, VARIABLE
from robustdyn.kernels.watchers import unwatched
from robustdyn.macs import macs_of

CHOICES = [f"cpp {isa}" for isa in ISAS] + ["torch"]


@pytest.fixture(params=CHOICES)
def force(request, monkeypatch):
    """Return a function that lets a kernel run one implementation whatever the density."""
    name, _, isa = request.param.partition(" ")
    if isa:
        monkeypatch.setenv(VARIABLE, isa)
        if native.native() is None:
            pytest.skip(native.why_not())

    def use(kernel):
        chosen = [i for i in kernel.implementations if i.name == name]
        forced = [type(i)(i.name, i.run, lambda *_, **__: []) for i in chosen]
        monkeypatch.setattr(kernel, "implementations", forced)
        return kernel

    return use


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("shape", [(0,), (1,), (1000,), (2, 5, 7)])
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_compaction(shape, density, dtype):
    mask = torch.rand(shape) < density
    active = kernels.mask_compact(mask, dtype=dtype)
    index, inverse, count = active.positions, active.inverse, active.number
    assert index.dtype == inverse.dtype == count.dtype == dtype
    expected = mask.flatten().nonzero().flatten()
    assert count.tolist() == [len(expected)]
    assert index[: len(expected)].tolist() == expected.tolist()
    assert (index[len(expected) :] == -1).all()
    assert (inverse >= 0).tolist() == mask.flatten().tolist()
    assert inverse[expected].tolist() == list(range(len(expected)))


@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("height", [6, 7])
def test_dilation_names_the_inputs_that_are_read(size, stride, height):
    window = torch.ones(1, 1, size, size)
    x = torch.zeros(2, 1, height, 5, requires_grad=True)
    y = F.conv2d(x, window, stride=stride, padding=size // 2)
    mask = torch.rand(y[:, 0].shape) < 0.2
    (read,) = torch.autograd.grad(y[:, 0][mask].sum(), x)
    got = kernels.mask_dilate(mask, size, stride=stride, shape=[height, 5])
    assert torch.equal(got, read[:, 0] > 0)


def test_dilation_of_a_sequence_and_its_errors():
    mask = torch.tensor([0, 0, 1, 0, 0, 0, 1]).bool()
    assert kernels.mask_dilate(mask, 3).int().tolist() == [0, 1, 1, 1, 0, 1, 1]
    with pytest.raises(ValueError, match="odd"):
        kernels.mask_dilate(mask, 2)


@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("in_place", [False, True])
def test_scatter_rows(add, in_place):
    y, rows, out = torch.randn(2, 3), torch.tensor([1, 4]), torch.randn(6, 3)
    expected = out.clone()
    expected[rows] = out[rows] + y if add else y
    before = out.clone()
    got = kernels.scatter_rows(y, rows, out, add=add, in_place=in_place)
    assert torch.equal(got, expected)
    assert (got is out) if in_place else torch.equal(out, before)


@pytest.mark.parametrize("fill", ["zero", "copy", "leave"])
@pytest.mark.parametrize("channels", [1, 8, 13])
def test_affine(force, fill, channels):
    kernel = force(kernels.masked_affine_act)
    x, residual = torch.randn(2, 2, 4, 5, channels)
    scale, shift = torch.randn(2, channels)
    mask, out = torch.rand(2, 4, 5) < 0.4, torch.full_like(x, float("nan"))
    off = {"zero": torch.zeros(()), "copy": residual, "leave": out.clone()}[fill]
    expected = torch.where(mask[..., None], (x * scale + shift + residual).relu(), off)
    y = kernel(x, scale, shift, mask, residual, relu=True, fill=fill, out=out)
    assert y is out
    torch.testing.assert_close(y, expected, equal_nan=True)


@pytest.mark.parametrize("density", [-1.0, 0.4, 2.0])
@pytest.mark.parametrize("size", [(9, 7), (1, 1)])
@pytest.mark.parametrize("kernel_size", [1, 3])
@pytest.mark.parametrize("which", ["inputs", "outputs", "both"])
def test_channels_of_each_sample(force, density, size, kernel_size, which):
    kernel = force(kernels.channel_masked_conv2d)
    x, weight, bias = (
        torch.randn(3, *size, 6),
        torch.randn(21, 6, *[kernel_size] * 2),
        torch.randn(21),
    )
    live = torch.rand(3, 6) < density if which != "outputs" else None
    kept = torch.rand(3, 21) < density if which != "inputs" else None
    inner = x if live is None else x * live[:, None, None]
    stride, padding = (2, 1) if kernel_size == 3 else (1, 0)
    y = F.conv2d(inner.permute(0, 3, 1, 2), weight, bias, stride, padding).relu()
    expected = y if kept is None else y * kept[:, :, None, None]
    got = kernel(x, weight, live, kept, bias, relu=True, stride=stride, padding=padding)
    torch.testing.assert_close(got, expected.permute(0, 2, 3, 1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("density", [-1.0, 0.4, 2.0])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("residual", [False, True])
def test_single_entries(force, density, stride, residual):
    kernel = force(kernels.entry_masked_conv2d)
    x, weight = torch.randn(2, 9, 7, 5), torch.randn(11, 5, 3, 3)
    y = F.conv2d(x.permute(0, 3, 1, 2), weight, None, stride, 1).permute(0, 2, 3, 1)
    mask = torch.rand(y.shape) < density
    added = torch.randn(y.shape) if residual else None
    expected = torch.where(mask, y, 0) + (0 if added is None else added)
    got = kernel(x, weight, mask, added, stride=stride, padding=1)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kernel_size", "padding"), [(1, 0), (3, 1), (5, 4), (3, 0)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("depth", [1, 5, 16, 33])
@pytest.mark.parametrize("outputs", [1, 3])
def test_few_outputs(force, kernel_size, padding, stride, depth, outputs):
    kernel = force(kernels.thin_conv2d)
    x, bias = torch.randn(2, 6, 19, depth), torch.randn(outputs)
    weight = torch.randn(outputs, depth, kernel_size, kernel_size)
    expected = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, stride, padding).permute(0, 2, 3, 1)
    got = kernel(x, weight, bias, stride=stride, padding=padding)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    alone = kernel(x[1:], weight, bias, stride=stride, padding=padding)
    if kernel.implementations:  # torch's own depends on the batch
        assert torch.equal(got[1:], alone)


@pytest.mark.parametrize("which", ["inputs", "outputs", "both"])
@pytest.mark.parametrize("density", [-1.0, 0.4, 2.0])
@pytest.mark.parametrize(("batch", "depth", "outputs"), [(1, 3, 5), (17, 20, 40), (3, 33, 16)])
def test_linear_layers(force, which, density, batch, depth, outputs):
    kernel = force(kernels.masked_linear)
    x, weight, bias = torch.randn(batch, depth), torch.randn(outputs, depth), torch.randn(outputs)
    live = torch.rand(batch, depth) < density if which != "outputs" else None
    kept = torch.rand(batch, outputs) < density if which != "inputs" else None
    y = F.linear(x if live is None else x * live, weight, bias)
    got = kernel(x, weight, live, kept, bias)
    torch.testing.assert_close(got, y if kept is None else y * kept, rtol=1e-4, atol=1e-4)


def test_experts_equal_a_loop_over_tokens():
    x, weight, bias = torch.randn(7, 4), torch.randn(5, 4, 3), torch.randn(5, 3)
    chosen = torch.stack([torch.randperm(4)[:2] for _ in range(7)])  # the fifth gets none
    weights = torch.rand(7, 2)
    order, offsets = kernels.route_experts(chosen, 5)
    y = kernels.grouped_matmul(x[order // 2], weight, offsets, bias, relu=True)
    got = kernels.combine_experts(y, order, weights)
    for t in range(7):
        parts = [(x[t] @ weight[e] + bias[e]).relu() for e in chosen[t]]
        torch.testing.assert_close(got[t], weights[t, 0] * parts[0] + weights[t, 1] * parts[1])
    plain = kernels.grouped_matmul(x[order // 2], weight, offsets)
    torch.testing.assert_close(plain[0], x[order[0] // 2] @ weight[chosen.flatten()[order[0]]])


CELLS = {"gru": torch.nn.GRUCell, "lstm": torch.nn.LSTMCell, "tanh": torch.nn.RNNCell}


def _recurrence(cell, batch, features, units):
    sequence = torch.randn(batch, 3, features)
    state = [torch.randn(batch, units) for _ in range(2 if cell == "lstm" else 1)]
    return CELLS[cell](features, units), sequence[:, 1], state  # a time step: rows lie apart


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("density", [-1.0, 0.5, 2.0])
@pytest.mark.parametrize("sizes", [(6, 4, 3), (1, 1, 1), (45, 12, 64), (17, 21, 37)])
@torch.no_grad()
def test_recurrent_step(force, cell, density, sizes):
    kernel = force(kernels.masked_rnn_step)
    module, x, state = _recurrence(cell, *sizes)
    mask = torch.rand(sizes[0]) < density
    new = module(x, tuple(state)) if cell == "lstm" else (module(x, state[0]),)
    x[~mask] = float("nan")
    got = kernel(x, state, mask, *module.parameters(), cell=cell)
    for before, after, mine in zip(state, new, got, strict=True):
        torch.testing.assert_close(mine[mask], after[mask], rtol=0, atol=2e-6)
        assert torch.equal(mine[~mask], before[~mask])
    bare = kernel(x, state, mask, module.weight_ih, module.weight_hh, cell=cell)
    zeros = torch.zeros_like(module.bias_ih)
    biases = kernel(x, state, mask, module.weight_ih, module.weight_hh, zeros, zeros, cell=cell)
    assert all(torch.equal(one, other) for one, other in zip(bare, biases, strict=True))
    with pytest.raises(ValueError, match="cell must be"):
        kernel(x, state, mask, *module.parameters(), cell="none")


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("reads", [1, 3])
@pytest.mark.parametrize("bias", [False, True])
@torch.no_grad()
def test_what_a_recurrent_step_reads(force, cell, reads, bias):
    kernel = force(kernels.masked_rnn_step)
    module, x, state = _recurrence(cell, 9, 4, 21)
    read, before = torch.nn.Linear(21, reads, bias=bias), torch.randn(9, reads)
    mask = torch.rand(9) < 0.5
    weights = (*module.parameters(), read.weight, read.bias)
    *new, got = kernel(x, [*state, before], mask, *weights, cell=cell)
    alone = kernel(x, state, mask, *module.parameters(), cell=cell)
    assert all(torch.equal(one, other) for one, other in zip(new, alone, strict=True))
    expected = torch.where(mask[:, None], torch.sigmoid(read(new[0])), before)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("cell", CELLS)
@torch.no_grad()
def test_a_recurrent_step_has_the_same_bits_in_any_company(force, cell):
    kernel = force(kernels.masked_rnn_step)
    if not kernel.implementations:
        pytest.skip("torch's products depend on their number of rows")
    module, x, state = _recurrence(cell, 23, 5, 19)
    state.append(torch.randn(23, 2))
    weights = (*module.parameters(), torch.randn(2, 19))
    whole = kernel(x, state, torch.ones(23).bool(), *weights, cell=cell)
    for row in range(23):
        one = slice(row, row + 1)
        own = [part[one] for part in state]
        got = kernel(x[one], own, torch.ones(1).bool(), *weights, cell=cell)
        for mine, all_ in zip(got, whole, strict=True):
            assert torch.equal(mine[0], all_[row])


@torch.no_grad()
def test_gates_are_exact_to_their_limits(force):
    kernel = force(kernels.masked_rnn_step)
    x = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([-1e4, -89, 89, 1e4, float("nan")])])
    one, mask, zeros = torch.ones(1, 1), torch.ones(len(x)).bool(), torch.zeros(len(x), 1)
    (tanh,) = kernel(x[:, None], [zeros], mask, one, 0 * one, cell="tanh")
    torch.testing.assert_close(tanh[:, 0], x.tanh(), rtol=0, atol=3e-7, equal_nan=True)
    stay = torch.tensor([[0.0], [1.0], [0.0]])  # h' = sigmoid(x) h
    (h,) = kernel(x[:, None], [zeros + 1], mask, stay, 0 * stay, cell="gru")
    torch.testing.assert_close(h[:, 0], x.sigmoid(), rtol=0, atol=3e-7, equal_nan=True)


def test_tokens():
    x, keep = torch.randn(2, 5, 3), torch.tensor([[0, 2], [3, 4]])
    got = kernels.gather_tokens(x, keep)
    assert torch.equal(got, torch.stack([x[b, keep[b]] for b in range(2)]))
    out = kernels.scatter_tokens(2 * got, keep, x)
    for b in range(2):
        rest = [n for n in range(5) if n not in keep[b]]
        assert torch.equal(out[b, keep[b]], 2 * x[b, keep[b]])
        assert torch.equal(out[b, rest], x[b, rest])


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
        "entry_masked_conv2d": ((x, w, entries), shape, int(entries.sum()) * 36),
        "thin_conv2d": ((x, w[:1], bias[:1]), shape, 2 * 5 * 6 * w[0].numel()),
        "masked_linear": ((tokens, wi, tokens > 0, None, None), {}, 9 * int((tokens > 0).sum())),
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
