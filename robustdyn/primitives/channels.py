"""Mask channels: compute only the kept outputs of a layer, from the inputs that are not zero."""

from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustdyn.decision import Decision, Share
from robustdyn.execution import is_sparse
from robustdyn.gates import forward_is_hard
from robustdyn.kernels import channel_masked_conv2d, masked_linear
from robustdyn.kernels.masks import channels_of
from robustdyn.primitives.folding import Folded, folded
from robustdyn.trace import mark_sparse, region


class _After(NamedTuple):
    """What follows the norm."""

    scale: Tensor | None = None
    shift: Tensor | None = None
    residual: Tensor | None = None
    relu: bool = False


_NOTHING = _After()


def masked_channels(
    layer: nn.Module,
    x: Tensor,
    *,
    outputs: Decision | None = None,
    inputs: Sequence[Decision] = (),
    norm: nn.Module | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    residual: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """Return [relu](keep * (scale * norm(layer(x)) + shift) + residual): `outputs` keeps channels.

    The mask comes after the norm, so that a closed channel is zero and not the norm's constant. A
    sample costs kept outputs times live inputs: those that one of the gates in `inputs` keeps, the
    union of their masks. Across residual additions x is a sum, and all that feed it count.

    Args:
        layer: an nn.Conv2d without bias, groups or dilation, or an nn.Linear.
        x: (B, C, H, W), or (B, C) for a linear layer.
        outputs: a decision with margin (B, G): one gate for each of G equal blocks of consecutive
            output channels; None computes all.
        inputs: the gates of the parts whose sum x is, so that x is zero where none of them keeps;
            margins (B, G'). Empty: all channels of x are live.
        norm: channel by channel, batch norm in eval; None is the identity.
        scale: (B, O), of each sample's channels, such as their saliencies; None is 1.
        shift: (O,); None is 0.
        residual: of the result's shape; what is added after the mask.
        relu: whether negative results become 0.
    """
    if not isinstance(layer, nn.Conv2d | nn.Linear):
        raise TypeError(f"masked_channels needs a Conv2d or a Linear, not {type(layer).__name__}")
    after = _After(scale, shift, residual, relu)
    if not is_sparse():
        y = _dense(layer, x, outputs, inputs)
        return _finished(_masked(y if norm is None else norm(y), outputs), outputs, after)
    mark_sparse()
    if isinstance(layer, nn.Linear):
        y = _linear(layer, x, outputs, inputs)
    else:
        whole = folded(layer, norm or nn.Identity())
        if whole is not None and not whole.relu:
            if forward_is_hard():
                return _convolution(layer, whole, x, outputs, inputs, after)
            norm = None
        else:
            whole = Folded(layer.weight, layer.bias, relu=False)
        y = _convolution(layer, whole, x, outputs, inputs)
    if norm is not None or not forward_is_hard():  # else closed channels are 0
        y = _masked(y if norm is None else norm(y), outputs)
    return _finished(y, outputs, after)


def union_share(gates: Sequence[Decision]) -> Share:
    """Return the share of channels that at least one gate keeps; margins (B, G) of one shape.

    The soft share is the chance that any of the gates keeps a channel.
    """
    if len(gates) == 1:
        return gates[0].share()

    def hard() -> Tensor:
        return _union(gates).double().mean(1)

    def soft() -> Tensor:  # 1 - prod(1 - p), with log(1 - sigmoid(m)) = -softplus(m)
        closed = torch.stack([F.softplus(gate.margin) for gate in gates]).sum(0)
        return -torch.expm1(-closed).mean(1)

    return Share(hard, soft)


def _union(gates: Sequence[Decision]) -> Tensor:
    return reduce(torch.logical_or, [gate.kept for gate in gates])  # (B, G)


def _finished(y: Tensor, outputs: Decision | None, after: _After) -> Tensor:
    """What follows, for y that is masked already."""
    scale, shift, residual, relu = after
    rest = [1] * (y.dim() - 2)
    if scale is not None:
        y = scale.reshape(*scale.shape, *rest) * y
    if shift is not None:
        shift = shift[None] if outputs is None else channels_of(outputs.keep, y.shape[1]) * shift
        y = y + shift.reshape(*shift.shape, *rest)
    if residual is not None:
        y = residual + y
    return F.relu(y) if relu else y


def _masked(y: Tensor, outputs: Decision | None) -> Tensor:
    if outputs is None:
        return y
    keep = channels_of(outputs.keep, y.shape[1])
    return keep.reshape(*keep.shape, *[1] * (y.dim() - 2)) * y


def _dense(
    layer: nn.Module, x: Tensor, outputs: Decision | None, inputs: Sequence[Decision]
) -> Tensor:
    shares = [union_share(inputs)] if inputs else []
    shares += [outputs.share()] if outputs is not None else []
    if not shares:
        return layer(x)
    with region(shares[0] if len(shares) == 1 else shares[0] * shares[1]):
        return layer(x)


def _linear(
    layer: nn.Linear, x: Tensor, outputs: Decision | None, inputs: Sequence[Decision]
) -> Tensor:
    """The layer's kept outputs from the live inputs of each sample; 0 where it is closed."""
    live = _union(inputs) if inputs else None
    kept = None if outputs is None else outputs.kept
    return masked_linear(x, layer.weight, live, kept, layer.bias)


def _convolution(
    layer: nn.Conv2d,
    whole: Folded,
    x: Tensor,
    outputs: Decision | None,
    inputs: Sequence[Decision],
    after: _After = _NOTHING,
) -> Tensor:
    """The layer's kept outputs from the live inputs of each sample, and what follows."""
    count, channels = layer.weight.shape[:2]
    kept = None if outputs is None else channels_of(outputs.kept, count)
    live = channels_of(_union(inputs), channels) if inputs else None
    y = channel_masked_conv2d(
        x.permute(0, 2, 3, 1),
        whole.weight,
        live,
        kept,
        whole.bias,
        after.scale,
        after.shift,
        None if after.residual is None else after.residual.permute(0, 2, 3, 1),
        relu=after.relu,
        stride=layer.stride[0],
        padding=int(layer.padding[0]),
    )
    return y.permute(0, 3, 1, 2)
