"""Linear layer of the outputs that each sample keeps."""

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from robustdyn.kernels.dispatch import kernel
from robustdyn.kernels.filling import where
from robustdyn.kernels.masks import channels_of, count
from robustdyn.kernels.operators import operator
from robustdyn.kernels.reference_gradient import reference_gradient


@kernel
def masked_linear(x: Tensor, weight: Tensor, kept: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x @ weight.T + bias, (B, O), at the kept outputs; elsewhere 0.

    Args:
        x: (B, C).
        weight: (O, C).
        kept: (B, G) bool, for each of G equal blocks of consecutive outputs.
        bias: (O,).

    Raises:
        ValueError: if O is not a multiple of G.
    """
    outputs = channels_of(kept, len(weight))
    return where(outputs, F.linear(x, weight, bias))


def _fake(x: Tensor, weight: Tensor, *_: Any) -> Tensor:
    return x.new_empty(len(x), len(weight))


def _macs(x: Tensor, weight: Tensor, kept: Tensor, *_: Any) -> int:
    return count(kept) * weight.numel() // max(kept.shape[1], 1)


masked_linear.operator = operator(
    "masked_linear(Tensor x, Tensor weight, Tensor kept, Tensor? bias=None) -> Tensor",
    masked_linear.run,
    fake=_fake,
    macs=_macs,
    **reference_gradient(masked_linear.reference),
)
