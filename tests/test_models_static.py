"""The models that always run in full: closed forms of their MACs, and what each computes."""

import pytest
import torch
import zoo
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import robustdyn as rd
from robustdyn.models.instance.cbam import AttentionBlock, ChannelAttention, SpatialAttention
from robustdyn.models.instance.condconv import CondConv, CondConvBlock
from robustdyn.models.instance.deformable import DeformableBlock, DeformableConv
from robustdyn.models.instance.dynamic_filter import DynamicFilterBlock, GeneratedConv
from robustdyn.models.instance.dynamic_relu import DynamicReLU, DynamicReLUBlock
from robustdyn.models.instance.moe_soft import SoftMixture
from robustdyn.models.instance.se_resnet import SqueezeExcitation, SqueezeExcitationBlock
from robustdyn.models.layers import BasicBlock
from robustdyn.models.small_resnet import SmallResNet

CLASSES = 3
# Of the smallest network, 1 x 8 x 8 -> 4 x 4 x 4 -> 8 x 2 x 2 -> 3.
STEM, FIRST, SECOND, SHORTCUT, HEAD = 4 * 9 * 16, 4 * 8 * 9 * 4, 8 * 8 * 9 * 4, 4 * 8 * 4, 8 * 3
PLAIN = STEM + FIRST + SECOND + SHORTCUT + HEAD
INNER = 4  # channels of the smallest generated convolution
# Of the smallest expert's second block, 8 x 2 x 2 -> 8 x 1 x 1.
DEEPER = 2 * 8 * 8 * 9 + 8 * 8


def _tiny(block):
    return SmallResNet(CLASSES, 1, [0.3], [0.3], block=block, plan=[(4, 8, 2)])


TINY = {
    "small resnet": (_tiny(BasicBlock), PLAIN),
    "se": (_tiny(SqueezeExcitationBlock), PLAIN + 2 * 8 * 2),
    "cbam": (_tiny(AttentionBlock), PLAIN + 2 * (2 * 8 * 2) + 2 * 49 * 4),
    "dynamic relu": (_tiny(DynamicReLUBlock), PLAIN + 2 * (8 * 2 + 2 * (2 * 2 * 8))),
    "condconv": (_tiny(CondConvBlock), PLAIN + (4 + 8) * 3 + 3 * (4 * 8 * 9 + 8 * 8 * 9)),
    "deformable": (_tiny(DeformableBlock), PLAIN + 8 * 27 * 9 * 4),
    "dynamic filter": (
        _tiny(DynamicFilterBlock),
        STEM
        + (4 * INNER * 9 * 4)
        + (4 * INNER * 8 + 8 * INNER * INNER * 9)  # the generator
        + (INNER * INNER * 9 * 4)
        + (INNER * 8 * 4)
        + SHORTCUT
        + HEAD,
    ),
    "moe soft": (
        SoftMixture(CLASSES, 1, [0.3], [0.3], width=4, widths=(8, 8), experts=2),
        STEM + 4 * 2 + 2 * (FIRST + SECOND + SHORTCUT + DEEPER + HEAD),
    ),
}


@pytest.mark.parametrize("case", TINY)
@torch.no_grad()
def test_macs_in_closed_form(case):
    model, macs = TINY[case]
    model.eval()
    x = torch.rand(3, 1, 8, 8)
    with rd.trace() as trace:
        model(x)
    assert trace.macs().tolist() == [macs] * 3
    assert trace.max_macs() == macs
    with FlopCounterMode(display=False) as counter:
        model(x[:1])
    assert counter.get_total_flops() == 2 * macs


# The layers whose outputs are what each model makes of the input: weights, kernels, offsets, ...
DYNAMIC_PARTS = {
    "se_resnet": ("excite.up",),
    "cbam_resnet": ("attend.0.mlp", "attend.1.conv"),
    "dynamic_relu": ("activate1.up", "activate2.up"),
    "condconv": ("conv1.0.route", "conv2.0.route"),
    "dynamic_filter": ("filter.0.write",),
    "deformable": ("conv2.0.place",),
    "moe_soft": ("gate",),
}


def _dynamic_parts(name, x):
    """Return logits, and by module the outputs of the model's dynamic parts."""
    model, seen = zoo.model(name), {}
    parts = {path: m for path, m in model.named_modules() if path.endswith(DYNAMIC_PARTS[name])}
    hooks = [
        module.register_forward_hook(lambda _, __, y, path=path: seen.__setitem__(path, y))
        for path, module in parts.items()
    ]
    try:
        logits = model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return logits, seen


@pytest.mark.parametrize("name", DYNAMIC_PARTS)
def test_gradients_reach_the_input_through_every_dynamic_part(name):
    x, y = zoo.samples(name, 12)
    x = x.clone().requires_grad_()
    logits, parts = _dynamic_parts(name, x)
    assert len(parts) % len(DYNAMIC_PARTS[name]) == 0
    loss = F.cross_entropy(logits, y, reduction="sum")
    for path, part in parts.items():
        (of_part,) = torch.autograd.grad(loss, part, retain_graph=True)
        (through,) = torch.autograd.grad(part, x, of_part, retain_graph=True)
        reached = through.flatten(1).abs().amax(1) > 0
        assert reached.double().mean() > 0.8, path  # a hidden layer may be shut for a sample


@pytest.mark.parametrize("name", DYNAMIC_PARTS)
@torch.no_grad()
def test_trained_dynamic_parts_depend_on_the_input(name):
    x, _ = zoo.samples(name, 12)
    _, parts = _dynamic_parts(name, x)
    for path, part in parts.items():
        spread = part.std(0).mean() / part.abs().mean()
        assert spread > 0.05, path


def test_squeeze_and_excitation_scales_channels():
    excite, x = SqueezeExcitation(8), torch.randn(2, 8, 3, 3)
    ratio = (excite(x) / x).flatten(2)
    torch.testing.assert_close(ratio, ratio[..., :1].expand_as(ratio))
    nn.init.zeros_(excite.up.weight)
    torch.testing.assert_close(excite(x), 0.5 * x)


def test_channel_attention_adds_what_mean_and_maximum_say():
    attend = ChannelAttention(8)
    level = torch.randn(2, 8)
    x = level[:, :, None, None].expand(2, 8, 3, 3)  # mean and maximum are the same
    expected = level * torch.sigmoid(2 * attend.mlp(level))
    torch.testing.assert_close(attend(x), expected[:, :, None, None].expand_as(x))


def test_spatial_attention_scales_positions():
    x = torch.rand(2, 5, 4, 4) + 1
    attend = SpatialAttention().eval()
    ratio = attend(x) / x
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio))
    assert ratio.std((2, 3)).min() > 0


def test_dynamic_relu_begins_as_relu_and_takes_the_larger_piece():
    activate, x = DynamicReLU(8), torch.randn(2, 8, 3, 3)
    slopes, intercepts = activate.coefficients(x)
    pieces = [slopes[k] * x + intercepts[k] for k in range(2)]
    torch.testing.assert_close(activate(x), torch.stack(pieces).amax(0))
    assert slopes.shape == intercepts.shape == (2, 2, 8, 1, 1)
    nn.init.zeros_(activate.up.weight)
    nn.init.zeros_(activate.up.bias)
    torch.testing.assert_close(activate(x), F.relu(x))


@pytest.mark.parametrize("extreme", [-1.0, 1.0])
def test_dynamic_relu_keeps_its_coefficients_bounded(extreme):
    activate = DynamicReLU(8)
    nn.init.constant_(activate.up.bias, 1000 * extreme)
    slopes, intercepts = activate.coefficients(torch.randn(2, 8, 3, 3))
    assert slopes.flatten(1).unique(dim=1).flatten().tolist() == [1 + extreme, extreme]
    assert intercepts.unique().tolist() == [0.5 * extreme]


@pytest.mark.parametrize("stride", [1, 2])
def test_a_mixed_kernel_gives_the_mixture_of_the_experts_outputs(stride):
    conv, x = CondConv(4, 6, stride), torch.randn(3, 4, 5, 5)
    kernels = conv.kernels.unflatten(2, (4, 3, 3))
    outputs = torch.stack([F.conv2d(x, k, stride=stride, padding=1) for k in kernels], 1)
    weights = torch.sigmoid(conv.route(x.mean((2, 3))))
    expected = (weights[:, :, None, None, None] * outputs).sum(1)
    torch.testing.assert_close(conv(x), expected, rtol=1e-4, atol=1e-5)


def test_a_generated_kernel_is_the_inputs_own():
    conv, x = GeneratedConv(4).eval(), torch.randn(2, 4, 6, 6)
    kernels = conv.kernel(x)
    assert kernels.shape == (2, 4, 4, 3, 3)
    assert (kernels[0] - kernels[1]).abs().min() > 0
    alone = [F.conv2d(x[k : k + 1], kernels[k], padding=1) for k in range(2)]
    torch.testing.assert_close(conv(x), torch.cat(alone))


def _deformable(stride=1, **biases):
    """A deformable convolution with the same offsets everywhere, in pixels, and full weights."""
    conv = DeformableConv(2, 3, stride)
    with torch.no_grad():
        conv.place.bias[:9] = biases.get("down", 0.0)
        conv.place.bias[9:18] = biases.get("right", 0.0)
        conv.place.bias[18:] = 100.0
    return conv


@pytest.mark.parametrize("stride", [1, 2])
def test_without_offsets_a_deformable_convolution_is_a_plain_one(stride):
    conv, x = _deformable(stride), torch.randn(2, 2, 7, 5)
    plain = F.conv2d(x, conv.conv.weight, stride=stride, padding=1)
    torch.testing.assert_close(conv(x), plain, rtol=1e-4, atol=1e-5)
    fresh = DeformableConv(2, 3, stride)  # its modulations begin at one half
    fresh.conv = conv.conv
    torch.testing.assert_close(fresh(x), 0.5 * plain, rtol=1e-4, atol=1e-5)


def test_whole_offsets_shift_the_map():
    conv, x = _deformable(down=1.0, right=-2.0), torch.randn(2, 2, 7, 5)
    shifted = F.pad(x, (3, -1, 0, 2))  # so that an unpadded convolution sees what the taps read
    expected = F.conv2d(shifted, conv.conv.weight)
    torch.testing.assert_close(conv(x), expected, rtol=1e-4, atol=1e-5)


def test_offsets_between_pixels_interpolate():
    x = torch.randn(2, 2, 7, 5)
    half, none, one = (_deformable(down=d) for d in (0.25, 0.0, 1.0))
    none.conv = one.conv = half.conv
    expected = 0.75 * none(x) + 0.25 * one(x)
    torch.testing.assert_close(half(x), expected, rtol=1e-4, atol=1e-5)


def test_each_tap_has_its_own_offset():
    """Nine taps that all read the centre make the sum of the kernel."""
    conv, x = _deformable(), torch.randn(2, 2, 6, 6)
    with torch.no_grad():
        conv.place.bias[:9] = torch.tensor([1.0, 1, 1, 0, 0, 0, -1, -1, -1])
        conv.place.bias[9:18] = torch.tensor([1.0, 0, -1, 1, 0, -1, 1, 0, -1])
    centre = F.conv2d(x, conv.conv.weight.sum((2, 3), keepdim=True))
    torch.testing.assert_close(conv(x), centre, rtol=1e-4, atol=1e-5)


def test_far_offsets_read_zeros():
    conv, x = _deformable(right=1e6), torch.randn(2, 2, 6, 6)
    assert conv(x).abs().max() == 0


def test_a_sure_gate_leaves_one_expert():
    model, x = SoftMixture(3, 1, [0.3], [0.3], 4, (8, 8), 2).eval(), torch.rand(2, 1, 8, 8)
    model.gate[1].running_mean[1] = -1000.0
    torch.testing.assert_close(model(x), model.experts[1](model.stem(x)))


@torch.no_grad()
def test_the_trained_gate_uses_every_expert():
    x = zoo.data("fashion_mnist", 400)
    x = x.stack(range(len(x)))
    model = zoo.model("moe_soft")
    weights = torch.softmax(model.gate(model.stem(x).mean((2, 3))), 1)
    assert weights.mean(0).min() > 0.02
    assert weights.std(0).max() > 0.05
