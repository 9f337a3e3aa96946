"""Training losses of models with exits; see robustdyn.losses."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from robustdyn.losses import described
from robustdyn.recipe import Loss
from robustdyn.trace import Trace


@described
def exit_cross_entropies(*, weights: Sequence[float]) -> Loss:
    """Return the sum over exits of weights[k] * cross-entropy of exit k, on every sample."""

    def loss(logits: Tensor, y: Tensor, trace: Trace, progress: float) -> Tensor:
        pairs = zip(weights, trace.exits, strict=True)
        return torch.stack([w * F.cross_entropy(e.logits.float(), y) for w, e in pairs]).sum()

    return loss
