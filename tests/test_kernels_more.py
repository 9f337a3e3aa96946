"""The other kernels against plain torch."""

import pytest
import torch
from torch.nn import functional as F

from robustdyn import kernels
from robustdyn.kernels import native


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


SHAPES = {  # window, stride, padding, dilation
    "1x1": (1, 1, 0, 1),
    "3x3": (3, 1, 1, 1),
    "3x3, stride 2": (3, 2, 1, 1),
    "3x3, dilation 2": (3, 1, 2, 2),
    "5x5, stride 3": (5, 3, 2, 1),
}


@pytest.mark.parametrize("density", [-1.0, 0.4, 2.0])
@pytest.mark.parametrize("size", [(9, 7), (4, 4), (2, 3), (1, 1)])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("which", ["inputs", "outputs", "both"])
@pytest.mark.parametrize("how", ["cpp", "whole"])
@pytest.mark.parametrize("after", [False, True])
def test_channels_of_each_sample(force, density, size, shape, which, how, after):
    kernel = force(kernels.channel_masked_conv2d, how)
    window, *geometry = SHAPES[shape]
    x, weight, bias = torch.randn(3, *size, 6), torch.randn(21, 6, window, window), torch.randn(21)
    live = torch.rand(3, 6) < density if which != "outputs" else None
    kept = torch.rand(3, 21) < density if which != "inputs" else None
    x = x if live is None else x * live[:, None, None]
    y = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, *geometry).permute(0, 2, 3, 1)
    then = (torch.randn(3, 21), torch.randn(21), torch.randn(y.shape)) if after else ()
    scale, shift, residual = then or (torch.ones(3, 21), 0, 0)
    keep = 1 if kept is None else kept[:, None, None]
    expected = keep * (y * scale[:, None, None] + shift) + residual
    options = dict(zip(("stride", "padding", "dilation"), geometry, strict=True))
    got = kernel(x, weight, live, kept, bias, *then, relu=True, **options)
    torch.testing.assert_close(got, expected.relu(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("how", ["cpp", "whole"])
@pytest.mark.parametrize("size", [7, 4])
@pytest.mark.parametrize("alone", [False, True])
def test_closed_channels_are_left_out_whatever_they_are(force, how, size, alone):
    kernel = force(kernels.channel_masked_conv2d, how)
    x, weight = torch.randn(2, size, size, 5), torch.randn(9, 5, 3, 3)
    kept, residual = torch.rand(2, 9) < 0.5, torch.randn(2, size, size, 9)
    weight[0], kept[:, 0] = float("inf"), False
    y = kernel(x, weight, None, kept, None, None, None, None if alone else residual, padding=1)
    closed = ~kept[:, None, None].expand_as(y)
    assert torch.equal(y[closed], residual[closed] * (not alone))
    dense = F.conv2d(x.permute(0, 3, 1, 2), weight, padding=1).permute(0, 2, 3, 1)
    dense = dense if alone else dense + residual
    torch.testing.assert_close(y[~closed], dense[~closed], rtol=1e-4, atol=1e-4)


def _entries(batch, height, width, outputs, density):
    """Positions that keep none, few, many or all of their outputs."""
    rates = density * torch.tensor([0.0, 0.15, 1.0, 4.0])[torch.randint(4, (batch, height, width))]
    return torch.rand(batch, height, width, outputs) < rates[..., None]


@pytest.mark.parametrize("density", [-1.0, 0.4, 2.0])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("depth", "outputs"), [(5, 11), (24, 32), (16, 50)])
@pytest.mark.parametrize("after", [(), ("residual",), ("residual", "affine", "relu")])
def test_single_entries(force, density, stride, depth, outputs, after):
    kernel = force(kernels.entry_masked_conv2d)
    x, weight = torch.randn(5, 9, 7, depth), torch.randn(outputs, depth, 3, 3)
    y = F.conv2d(x.permute(0, 3, 1, 2), weight, None, stride, 1).permute(0, 2, 3, 1)
    mask = _entries(*y.shape, density)
    residual = torch.randn(y.shape) if "residual" in after else None
    scale, shift = torch.randn(2, outputs) if "affine" in after else (None, None)
    expected = torch.where(mask, y, 0) + (0 if residual is None else residual)
    expected = expected if scale is None else expected * scale + shift
    expected = expected.relu() if "relu" in after else expected
    options = {"relu": "relu" in after, "stride": stride, "padding": 1}
    got = kernel(x, weight, mask, residual, scale, shift, **options)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    residual = None if residual is None else residual[1:]
    alone = kernel(x[1:], weight, mask[1:], residual, scale, shift, **options)
    if kernel.implementations:  # torch's own depends on the batch
        assert torch.equal(got[1:], alone)


def test_entries_need_a_mask_of_the_output(force):
    kernel = force(kernels.entry_masked_conv2d)
    x, weight = torch.randn(2, 5, 5, 4), torch.randn(3, 4, 3, 3)
    for shape in ((2, 5, 5, 3), (2, 3, 3, 4), (3, 3, 3, 3)):
        with pytest.raises(ValueError, match=r"the mask must be bool \(2, 3, 3, 3\)"):
            kernel(x, weight, torch.ones(shape, dtype=torch.bool))


def _wrong_shapes():
    """Calls that would read beyond a tensor: kernel, arguments, what is wrong."""
    x, weight, mask = torch.randn(2, 5, 5, 4), torch.randn(4, 4, 3, 3), torch.ones(2, 5, 5).bool()
    flags, vector, small = torch.ones(2, 4).bool(), torch.randn(4), torch.randn(3)
    thick, linear = torch.randn(4, 8, 3, 3), torch.randn(4, 4)
    for kernel in ("masked_conv2d", "masked_conv2d_input_grad"):
        last = ([5, 5],) if kernel.endswith("grad") else ()
        yield kernel, (torch.randn(2, 5, 5, 3), weight, mask, *last), {"padding": 1}
    yield "masked_conv2d", (x, weight, mask, small), {"padding": 1}
    yield "masked_conv2d", (x, weight, mask, None, x[:1]), {"padding": 1}
    yield "masked_depthwise_conv2d", (x, weight[:, :1], mask, small), {"padding": 1}
    yield "masked_affine_act", (x, small, vector, mask), {}
    yield "masked_affine_act", (x, vector, vector, mask[:1]), {}
    for wrong in ((x, thick), (x, weight, flags[:1]), (x, weight, None, flags[:, :3])):
        yield "channel_masked_conv2d", wrong, {"padding": 1}
    after = {"bias": small, "scale": linear[:1], "shift": small, "residual": x[:1]}
    for k in range(4):
        given = [value if k == j else None for j, value in enumerate(after.values())]
        yield "channel_masked_conv2d", (x, weight, None, flags, *given), {"padding": 1}
    entries = torch.ones(2, 5, 5, 4).bool()
    yield "entry_masked_conv2d", (x, thick, entries), {"padding": 1}
    yield "entry_masked_conv2d", (x, weight, entries, x[:1]), {"padding": 1}
    yield "entry_masked_conv2d", (x, weight, entries, None, small), {"padding": 1}
    yield "thin_conv2d", (x, thick), {"padding": 1}
    yield "thin_conv2d", (x, weight, small), {"padding": 1}
    yield "masked_linear", (torch.randn(2, 3), linear, None, flags), {}
    yield "masked_linear", (torch.randn(2, 4), linear, None, flags, small), {}


@pytest.mark.skipif(native.native() is None, reason="no C++ library")
@pytest.mark.parametrize(("name", "arguments", "options"), list(_wrong_shapes()))
def test_cpp_reads_nothing_beyond_a_tensor(name, arguments, options):
    for implementation in kernels.get_kernel(name).implementations:
        if implementation.name == "cpp":
            with pytest.raises(ValueError, match=r"must be \(.*, not \("):
                implementation.run(*arguments, **options)


def test_an_output_without_positions():
    x, weight = torch.randn(2, 2, 2, 4), torch.randn(4, 4, 3, 3)
    for kernel, mask in (
        (kernels.masked_conv2d, torch.ones(2, 0, 0, dtype=torch.bool)),
        (kernels.entry_masked_conv2d, torch.ones(2, 0, 0, 4, dtype=torch.bool)),
    ):
        for implementation in kernel.implementations:
            if implementation.name == "cpp" and native.native() is not None:
                assert implementation.run(x, weight, mask).shape == (2, 0, 0, 4)
    kernel, kept = kernels.channel_masked_conv2d, torch.ones(2, 4, dtype=torch.bool)
    for implementation in kernel.implementations:
        if implementation.name == "cpp" and native.native() is not None:
            assert implementation.run(x, weight, kept, kept).shape == (2, 0, 0, 4)


def test_a_window_has_a_bit_for_each_of_its_taps():
    x, mask = torch.randn(1, 9, 9, 4), torch.zeros(1, 9, 9, dtype=torch.bool)
    mask[0, 4, 4] = True
    for size, name in ((7, "cpp"), (9, "chunked")):
        arguments = (x, torch.randn(4, 4, size, size), mask)
        chosen = kernels.masked_conv2d.select(*arguments, padding=size // 2).name
        assert chosen == name or native.native() is None
        got = kernels.masked_conv2d(*arguments, padding=size // 2)
        expected = kernels.masked_conv2d.reference(*arguments, padding=size // 2)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("first", [0, 3])
def test_a_slice_of_the_channels_is_read_where_it_lies(force, first):
    more, weight = torch.randn(2, 6, 5, 8), torch.randn(4, 8 - first, 3, 3)
    x, mask = more[..., first:], torch.rand(2, 6, 5) < 0.5
    y = F.conv2d(x.permute(0, 3, 1, 2), weight, padding=1).permute(0, 2, 3, 1)
    expected = torch.where(mask[..., None], y, 0)
    got = force(kernels.masked_conv2d)(x, weight, mask, padding=1)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    entries = mask[..., None].expand(-1, -1, -1, 4)
    got = force(kernels.entry_masked_conv2d)(x, weight, entries, padding=1)
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


@pytest.mark.parametrize("density", [-1.0, 0.4, 2.0])
@pytest.mark.parametrize("block", [1, 8, "all"])
@pytest.mark.parametrize(
    ("batch", "depth", "outputs"), [(1, 3, 8), (17, 20, 40), (64, 256, 16), (90, 5, 8)]
)
def test_linear_layers(force, density, block, batch, depth, outputs):
    kernel = force(kernels.masked_linear)
    x, weight, bias = torch.randn(batch, depth), torch.randn(outputs, depth), torch.randn(outputs)
    size = outputs if block == "all" else block
    kept = torch.rand(batch, outputs // size) < density
    expected = F.linear(x, weight, bias) * kept.repeat_interleave(size, 1)
    got = kernel(x, weight, None, kept, bias)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    if kernel.implementations:  # torch's own depends on the batch
        assert torch.equal(got[1:], kernel(x[1:], weight, None, kept[1:], bias))


def test_blocks_of_outputs_must_be_equal(force):
    with pytest.raises(ValueError, match="8 channels cannot be cut into 3 equal blocks"):
        force(kernels.masked_linear)(
            torch.randn(2, 4), torch.randn(8, 4), None, torch.ones(2, 3, dtype=torch.bool)
        )


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


def test_tokens():
    x, keep = torch.randn(2, 5, 3), torch.tensor([[0, 2], [3, 4]])
    got = kernels.gather_tokens(x, keep)
    assert torch.equal(got, torch.stack([x[b, keep[b]] for b in range(2)]))
    out = kernels.scatter_tokens(2 * got, keep, x)
    for b in range(2):
        rest = [n for n in range(5) if n not in keep[b]]
        assert torch.equal(out[b, keep[b]], 2 * x[b, keep[b]])
        assert torch.equal(out[b, rest], x[b, rest])
