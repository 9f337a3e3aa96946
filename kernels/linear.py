"""Linear layer of the outputs that each sample keeps."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from robustdyn.kernels.dispatch import kernel
from robustdyn.kernels.filling import where
from robustdyn.kernels.masks import channels_of
from robustdyn.kernels.operators import operator
from robustdyn.kernels.reference_gradient import reference_gradient


@kernel
def masked_linear(
    x: Tensor,
    weight: Tensor,
    inputs: Tensor | None = None,
    outputs: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Return x @ weight.T + bias, (B, O), at the kept outputs; elsewhere 0.

    An input that is not live must be 0 in x, so that it may be left out.

    Args:
        x: (B, C).
        weight: (O, C).
        inputs: (B, G) bool, the live ones of G equal blocks of consecutive inputs; None: all.
        outputs: (B, G') bool, the kept ones of G' equal blocks of outputs; None: all.
        bias: (O,).

    Raises:
        ValueError: if the blocks of outputs are not equal.
    """
    y = F.linear(x, weight, bias)
    return y if outputs is None else where(channels_of(outputs, len(weight)), y)


def _fake(x: Tensor, weight: Tensor, *_: Any) -> Tensor:
    return x.new_empty(len(x), len(weight))


def _macs(
    x: Tensor, weight: Tensor, inputs: Tensor | None = None, outputs: Tensor | None = None, *_: Any
) -> int:
    parts = [
        torch.ones(len(x)).double() if mask is None else mask.double().mean(1)
        for mask in (inputs, outputs)
    ]
    return round((parts[0].to(x.device) * parts[1].to(x.device)).sum().item() * weight.numel())


masked_linear.operator = operator(
    "masked_linear(Tensor x, Tensor weight, Tensor? inputs=None, Tensor? outputs=None,"
    " Tensor? bias=None) -> Tensor",
    masked_linear.run,
    fake=_fake,
    macs=_macs,
    **reference_gradient(masked_linear.reference),
)
