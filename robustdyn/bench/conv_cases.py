"""Cases of masked convolutions, NHWC, against torch's dense ones, channels-last."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn import grad as dense_grad

from robustdyn.bench.cases import Case, Draw, Problem, problem
from robustdyn.kernels import (
    channel_masked_conv2d,
    entry_masked_conv2d,
    mask_dilate,
    masked_affine_act,
    masked_conv2d,
    masked_conv2d_input_grad,
    masked_depthwise_conv2d,
)

BATCH = 8
BOTH = ("random", "blocky")
SAME = {"padding": 1}


def _tensors(draw: Draw, channels: int, size: int, depth: int) -> tuple[Tensor, Tensor]:
    """The input (B, H, W, C) and a 3 x 3 weight (C, depth, 3, 3), channels-last as models have."""
    x = draw.values(BATCH, size, size, channels)
    weight = draw.values(channels, depth, 3, 3) / (9 * depth) ** 0.5
    return x, weight.to(memory_format=torch.channels_last)


def _conv(channels: int, size: int, active: float, draw: Draw) -> Problem:
    x, weight = _tensors(draw, channels, size, channels)
    mask = draw.mask((BATCH, size, size), active)

    def dense() -> Tensor:
        return F.conv2d(x.permute(0, 3, 1, 2), weight, padding=1)

    return problem(masked_conv2d, (x, weight, mask), SAME, dense, _part(mask))


def _input_grad(channels: int, size: int, active: float, draw: Draw) -> Problem:
    grad, weight = _tensors(draw, channels, size, channels)
    mask = draw.mask((BATCH, size, size), active)
    shape = [BATCH, channels, size, size]

    def dense() -> Tensor:
        return dense_grad.conv2d_input(shape, weight, grad.permute(0, 3, 1, 2), padding=1)

    arguments = (grad, weight, mask, [size, size])
    return problem(masked_conv2d_input_grad, arguments, SAME, dense, _part(mask))


def _depthwise(channels: int, size: int, active: float, draw: Draw) -> Problem:
    x, weight = _tensors(draw, channels, size, 1)
    mask = draw.mask((BATCH, size, size), active)

    def dense() -> Tensor:
        return F.conv2d(x.permute(0, 3, 1, 2), weight, padding=1, groups=channels)

    part = _part(mask)  # the read windows and the whole output against the whole of both
    ceiling = 2 * part / (_part(mask_dilate(mask, 3)) + 1)
    arguments = (x, weight, mask)
    return problem(masked_depthwise_conv2d, arguments, SAME, dense, part, ceiling=ceiling)


def _affine(channels: int, size: int, active: float, draw: Draw) -> Problem:
    x = draw.values(BATCH, size, size, channels)
    scale, shift, mean = (draw.values(channels) for _ in range(3))
    mask = draw.mask((BATCH, size, size), active)

    def dense() -> Tensor:
        return F.batch_norm(x.permute(0, 3, 1, 2), mean, scale.abs(), scale, shift).relu_()

    part = _part(mask)
    arguments, options = (x, scale, shift, mask), {"relu": True}
    ceiling = 2 * part / (part + 1)
    return problem(masked_affine_act, arguments, options, dense, part, ceiling=ceiling)


def _channels(channels: int, size: int, active: float, draw: Draw) -> Problem:
    x, weight = _tensors(draw, channels, size, channels)
    kept = draw.mask((BATCH, channels), active)

    def dense() -> Tensor:
        return F.conv2d(x.permute(0, 3, 1, 2), weight, padding=1)

    arguments = (x, weight, None, kept)
    return problem(channel_masked_conv2d, arguments, SAME, dense, _part(kept))


def _entries(channels: int, size: int, active: float, draw: Draw) -> Problem:
    x, weight = _tensors(draw, channels, size, channels)
    if draw.blocky:  # all entries of a position, or none
        mask = draw.mask((BATCH, size, size), active)[..., None].repeat(1, 1, 1, channels)
    else:
        mask = draw.mask((BATCH, size, size, channels), active)

    def dense() -> Tensor:
        return F.conv2d(x.permute(0, 3, 1, 2), weight, padding=1)

    return problem(entry_masked_conv2d, (x, weight, mask), SAME, dense, _part(mask))


def _part(mask: Tensor) -> float:
    return mask.double().mean().item()


def _case(
    name: str,
    kernel: str,
    make: Callable[[int, int, float, Draw], Problem],
    channels: int,
    size: int,
    masks: tuple[str, ...] = BOTH,
) -> Case:
    shape = f"{BATCH}x{size}x{size}x{channels}"
    return Case(f"{name} {channels}", kernel, shape, partial(make, channels, size), masks)


CONV_CASES = (
    _case("conv", "masked_conv2d", _conv, 64, 56),
    _case("conv", "masked_conv2d", _conv, 128, 28),
    _case("conv", "masked_conv2d", _conv, 256, 14),
    _case("gradient", "masked_conv2d_input_grad", _input_grad, 64, 56),
    _case("gradient", "masked_conv2d_input_grad", _input_grad, 128, 28),
    _case("depthwise", "masked_depthwise_conv2d", _depthwise, 128, 56),
    _case("affine", "masked_affine_act", _affine, 128, 56),
    _case("channels", "channel_masked_conv2d", _channels, 64, 28, ("random",)),
    _case("entries", "entry_masked_conv2d", _entries, 64, 28),
)
