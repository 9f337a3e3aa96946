"""Masked convolutions: every implementation says what the reference says, and touches no more."""

from itertools import product

import pytest
import torch
from torch.nn import functional as F

from robustdyn.kernels import (
    masked_conv2d,
    masked_conv2d_input_grad,
    masked_depthwise_conv2d,
    native,
)
from robustdyn.kernels.native import ISAS, VARIABLE


def _choices(kernel):
    """The kernel's implementations on the CPU, the C++ one in each instruction set."""
    names = [i.name for i in kernel.implementations if i.name != "cuda"]
    cpp = [f"cpp {isa}" for isa in ISAS] if "cpp" in names else []
    return [*cpp, *(name for name in names if name != "cpp"), "torch"]


def _use(choice, monkeypatch, kernel):
    """Let the kernel run the chosen implementation whatever the mask; skip if it cannot here."""
    name, _, isa = choice.partition(" ")
    if isa:
        monkeypatch.setenv(VARIABLE, isa)
        if native.native() is None:
            pytest.skip(native.why_not())
    chosen = [i for i in kernel.implementations if i.name == name]
    assert chosen or name == "torch"
    forced = [type(i)(i.name, i.run, lambda *_, **__: []) for i in chosen]
    monkeypatch.setattr(kernel, "implementations", forced)


@pytest.fixture(params=_choices(masked_conv2d))
def conv(request, monkeypatch):
    _use(request.param, monkeypatch, masked_conv2d)
    return masked_conv2d


def _mask(kind, *shape):
    generator = torch.Generator().manual_seed(3)
    if kind == "one":
        mask = torch.zeros(shape, dtype=torch.bool)
        mask[-1, -1, -1] = True  # a corner
        return mask
    return torch.rand(shape, generator=generator) < {"none": -1, "some": 0.4, "all": 2}[kind]


def _case(channels, outputs, size, *, stride=1, padding=0, dilation=1, groups=1, kind="some"):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 9, 7, channels, generator=generator)
    weight = torch.randn(outputs, channels // groups, size, size, generator=generator)
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    dense = F.conv2d(x.permute(0, 3, 1, 2), weight, **options).permute(0, 2, 3, 1)
    return x, weight, _mask(kind, *dense.shape[:3]), dense, options


CASES = [
    {"channels": 3, "outputs": 5, "size": 3, "padding": 1},
    {"channels": 16, "outputs": 16, "size": 3, "padding": 1, "stride": 2},
    {"channels": 5, "outputs": 33, "size": 1},
    {"channels": 8, "outputs": 20, "size": 1, "stride": 2},
    {"channels": 4, "outputs": 9, "size": 5, "padding": 2},
    {"channels": 4, "outputs": 8, "size": 3, "padding": 2, "dilation": 2},
    {"channels": 6, "outputs": 4, "size": 3, "padding": 0},
    {"channels": 8, "outputs": 36, "size": 3, "padding": 1, "groups": 2},
    {"channels": 20, "outputs": 20, "size": 3, "padding": 1, "groups": 20},
]


@pytest.mark.parametrize("kind", ["none", "one", "some", "all"])
@pytest.mark.parametrize(
    ("choice", "case"),
    [
        (choice, case)
        for choice, case in product(_choices(masked_conv2d), CASES)
        if choice != "chunked" or "groups" not in case  # which it does not support
    ],
    ids=str,
)
def test_convolution_at_the_mask(monkeypatch, choice, case, kind):
    _use(choice, monkeypatch, masked_conv2d)
    x, weight, mask, dense, options = _case(**case, kind=kind)
    y = masked_conv2d(x, weight, mask, **options)
    assert y.is_contiguous()
    torch.testing.assert_close(y, torch.where(mask[..., None], dense, 0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("fill", ["zero", "copy", "leave"])
@pytest.mark.parametrize("where", ["new", "out", "in place"])
def test_bias_residual_relu_and_fill(conv, relu, fill, where):
    x, weight, mask, dense, options = _case(6, 19, 3, padding=1)
    bias, residual = torch.randn(19), torch.randn(dense.shape)
    expected = dense + bias + residual
    expected = expected.relu() if relu else expected
    canary = torch.full_like(dense, float("nan"))
    before = {"new": None, "out": canary, "in place": residual.clone()}[where]
    other = {"zero": torch.zeros(()), "copy": residual, "leave": before}[fill]
    added = before if where == "in place" else residual
    y = conv(x, weight, mask, bias, added, relu=relu, fill=fill, out=before, **options)
    if before is not None:
        assert y is before
    if other is None:  # nothing is promised off the mask
        y, expected = y[mask], expected[mask]
    else:
        off = (canary if where == "out" else residual) if fill == "leave" else other
        expected = torch.where(mask[..., None], expected, off)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4, equal_nan=True)


def test_inputs_of_any_layout(conv):
    x, weight, mask, dense, options = _case(6, 8, 3, padding=1)
    x = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    weight = weight.to(memory_format=torch.channels_last)
    mask = mask.transpose(1, 2).contiguous().transpose(1, 2)
    y = conv(x, weight, mask, **options)
    torch.testing.assert_close(y[mask], dense[mask], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("choice", _choices(masked_conv2d_input_grad))
@pytest.mark.parametrize("kind", ["none", "one", "some", "all"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", [1, 2])
def test_input_gradient(monkeypatch, choice, kind, stride, groups):
    _use(choice, monkeypatch, masked_conv2d_input_grad)
    shape = {"padding": 2, "stride": stride, "dilation": 2, "groups": groups}
    x, weight, mask, dense, options = _case(6, 20, 3, **shape, kind=kind)
    grad = torch.randn(dense.shape)
    grad[~mask] = float("nan")  # must not count
    x = x.permute(0, 3, 1, 2).requires_grad_()
    dense = F.conv2d(x, weight, **options).permute(0, 2, 3, 1)
    (expected,) = torch.autograd.grad(dense[mask].sum() * 0 + (dense[mask] * grad[mask]).sum(), x)
    got = masked_conv2d_input_grad(grad, weight, mask, list(x.shape[2:]), **options)
    torch.testing.assert_close(got.permute(0, 3, 1, 2), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("choice", _choices(masked_depthwise_conv2d))
@pytest.mark.parametrize("channels", [3, 16, 21])
@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise(monkeypatch, choice, channels, stride):
    _use(choice, monkeypatch, masked_depthwise_conv2d)
    case = _case(channels, channels, 3, stride=stride, padding=1, groups=channels)
    x, weight, mask, dense, options = case
    del options["groups"]
    bias, residual = torch.randn(channels), torch.randn(dense.shape)
    y = masked_depthwise_conv2d(x, weight, mask, bias, residual, relu=True, **options)
    expected = torch.where(mask[..., None], (dense + bias + residual).relu(), 0)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fill", ["zero", "copy"])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_gradcheck(fill, relu, groups):
    x, weight, mask, dense, options = _case(4, 6, 3, stride=2, padding=1, groups=groups)
    x, weight, residual = (t[:1].double() if t is x else t.double() for t in (x, weight, dense))
    mask, residual, bias = mask[:1], residual[:1].clone(), torch.randn(6).double()
    inputs = [t.clone().requires_grad_() for t in (x, weight, bias, residual)]
    assert torch.autograd.gradcheck(
        lambda x, w, b, r: masked_conv2d(x, w, mask, b, r, relu=relu, fill=fill, **options), inputs
    )


def test_gradcheck_depthwise():
    x, weight, mask, _, options = _case(4, 4, 3, padding=1, groups=4)
    del options["groups"]
    inputs = [t.double().requires_grad_() for t in (x[:1], weight)]
    assert torch.autograd.gradcheck(
        lambda x, w: masked_depthwise_conv2d(x, w, mask[:1], relu=True, **options), inputs
    )


@pytest.mark.parametrize("out", [False, True])
def test_a_wrong_mask_or_fill_is_named(conv, out):
    x, weight, mask, dense, options = _case(3, 4, 3, padding=1)
    where = torch.empty(dense.shape) if out else None
    with pytest.raises(ValueError, match="mask must be bool"):
        conv(x, weight, mask[:, 1:], out=where, **options)
    with pytest.raises(ValueError, match="fill must be"):
        conv(x, weight, mask, fill="nothing", out=where, **options)
    with pytest.raises(ValueError, match="residual"):
        conv(x, weight, mask, fill="copy", out=where, **options)


def test_a_changed_weight_is_packed_again(monkeypatch):
    _use("cpp generic", monkeypatch, masked_conv2d)
    x, weight, mask, _, options = _case(4, 8, 3, padding=1)

    def check(weight):
        y = masked_conv2d(x, weight, mask, **options)
        dense = F.conv2d(x.permute(0, 3, 1, 2), weight, padding=1).permute(0, 2, 3, 1)
        torch.testing.assert_close(y[mask], dense[mask], rtol=1e-4, atol=1e-4)

    check(weight)
    check(weight.mul_(2))
    weight.data.mul_(2)
    check(weight)
    for _ in range(20):  # new weights in the memory of old ones
        check(torch.randn(8, 4, 3, 3))


def test_full_masks_and_other_types_go_to_torch():
    x, weight, mask, _, options = _case(4, 8, 3, padding=1)
    full = torch.ones_like(mask)
    assert masked_conv2d.select(x, weight, full, **options).name == "torch"
    everywhere = "torch" if native.native() is None else "whole"
    assert masked_conv2d.select(x, weight, full, relu=True, **options).name == everywhere
    half = masked_conv2d.select(x.double(), weight.double(), mask & False, **options)
    assert half.name == "chunked"
    expected = "chunked" if native.native() is None else "cpp"
    assert masked_conv2d.select(x, weight, mask & False, **options).name == expected


def test_what_a_gradient_reaches_decides_not_the_mask():
    """Positions that lie far apart reach many inputs, positions of a block few more than it has."""
    grad, weight = torch.randn(1, 24, 24, 64), torch.randn(64, 64, 3, 3)
    apart, block = torch.zeros(2, 1, 24, 24, dtype=torch.bool)
    apart[:, ::3, ::3] = True
    block[:, :8, :8] = True
    assert apart.sum() == block.sum()
    names = [
        masked_conv2d_input_grad.select(grad, weight, mask, [24, 24], padding=1).name
        for mask in (apart, block)
    ]
    assert names == ["torch", "torch" if native.native() is None else "cpp"]
