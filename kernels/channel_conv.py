"""Convolution of the channels that each sample keeps."""

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from robustdyn.kernels.dispatch import kernel
from robustdyn.kernels.filling import where
from robustdyn.kernels.masked_conv import output_shape
from robustdyn.kernels.operators import operator
from robustdyn.kernels.reference_gradient import reference_gradient


@kernel
def channel_masked_conv2d(
    x: Tensor,
    weight: Tensor,
    inputs: Tensor | None = None,
    outputs: Tensor | None = None,
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    relu: bool = False,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
) -> Tensor:
    """Return [relu](keep * (scale * (conv(x) + bias) + shift) + residual), (B, H', W', O).

    keep is 1 at the kept outputs of each sample and 0 elsewhere, whatever stands there. An input
    that is not live must be 0 in x, so that it may be left out.

    Args:
        x: (B, H, W, C), NHWC.
        weight: (O, C, k, k).
        inputs: (B, C) bool, the live input channels; None: all.
        outputs: (B, O) bool, the kept output channels; None: all.
        bias, shift: (O,).
        scale: (B, O).
        residual: (B, H', W', O).
        relu: whether negative results become 0.
        stride, padding, dilation: of the convolution, the same in both directions.
    """
    y = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, stride, padding, dilation)
    y = y.permute(0, 2, 3, 1)
    if scale is not None:
        y = y * scale[:, None, None]
    if shift is not None:
        y = y + shift
    if outputs is not None:
        y = where(outputs[:, None, None], y)
    if residual is not None:
        y = y + residual
    return (y.relu() if relu else y).contiguous()


def _fake(x, weight, *_: Any, relu=False, **geometry: Any) -> Tensor:
    return x.new_empty(x.shape[0], *output_shape(x, weight, **geometry), weight.shape[0])


def _macs(x, weight, inputs=None, outputs=None, *_: Any, relu=False, **geometry: Any) -> int:
    count, channels, *window = weight.shape
    live = x.new_full((x.shape[0],), channels).long() if inputs is None else inputs.sum(1)
    kept = x.new_full((x.shape[0],), count).long() if outputs is None else outputs.sum(1)
    height, width = output_shape(x, weight, **geometry)
    return int((live * kept).sum()) * window[0] * window[1] * height * width


channel_masked_conv2d.operator = operator(
    "channel_masked_conv2d(Tensor x, Tensor weight, Tensor? inputs=None, Tensor? outputs=None,"
    " Tensor? bias=None, Tensor? scale=None, Tensor? shift=None, Tensor? residual=None, *,"
    " bool relu=False, int stride=1, int padding=0, int dilation=1) -> Tensor",
    channel_masked_conv2d.run,
    fake=_fake,
    macs=_macs,
    **reference_gradient(channel_masked_conv2d.reference),
)
