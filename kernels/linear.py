"""Linear layer of the outputs that each sample keeps."""

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from robustdyn.kernels.dispatch import kernel
from robustdyn.kernels.filling import where
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
    """Return x @ weight.T + bias, (B, O), of the live inputs, at the kept outputs; elsewhere 0.

    Args:
        x: (B, C).
        weight: (O, C).
        inputs: (B, C) bool, the live inputs, the others count as 0; None: all.
        outputs: (B, O) bool, the kept outputs; None: all.
        bias: (O,).
    """
    y = F.linear(x if inputs is None else where(inputs, x), weight, bias)
    return y if outputs is None else where(outputs, y)


def _fake(x: Tensor, weight: Tensor, *_: Any) -> Tensor:
    return x.new_empty(len(x), len(weight))


def _macs(
    x: Tensor, weight: Tensor, inputs: Tensor | None = None, outputs: Tensor | None = None, *_: Any
) -> int:
    live = x.new_full((len(x),), weight.shape[1]).long() if inputs is None else inputs.sum(1)
    kept = x.new_full((len(x),), len(weight)).long() if outputs is None else outputs.sum(1)
    return int((live * kept).sum())


masked_linear.operator = operator(
    "masked_linear(Tensor x, Tensor weight, Tensor? inputs=None, Tensor? outputs=None,"
    " Tensor? bias=None) -> Tensor",
    masked_linear.run,
    fake=_fake,
    macs=_macs,
    **reference_gradient(masked_linear.reference),
)
