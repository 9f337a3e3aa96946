"""Fitting thresholds on the calibration split, never on test."""

import torch
from torch import Tensor, nn

from robustdyn.losses import described
from robustdyn.primitives.exits import confidence_logit
from robustdyn.recipe import Calibrate
from robustdyn.trace import trace


@described
def fit_confidence_threshold(*, max_drop: float) -> Calibrate:
    """Return a calibration that sets one threshold for all exits of `model.thresholds`.

    The smallest threshold in 0.50, 0.51 ... 0.99 at which the accuracy is at most `max_drop`
    below full inference (no early exit).
    """

    def calibrate(model: nn.Module, inputs: list[Tensor], labels: list[Tensor]) -> None:
        logits = []  # per batch, (exits, B, K)
        for x in inputs:
            with trace() as passed:
                model(x)
            logits.append(torch.stack([exit.logits for exit in passed.exits]))
        exits, y = torch.cat(logits, 1), torch.cat(labels)
        full = (exits[-1].argmax(1) == y).double().mean()
        sure = torch.sigmoid(torch.stack([confidence_logit(part) for part in exits]))  # (exits, N)
        for threshold in [*(t / 100 for t in range(50, 100)), 0.999]:
            stops = sure >= threshold
            last = torch.where(stops[-1], len(exits) - 1, sure.argmax(0))
            taken = torch.where(stops.any(0), stops.int().argmax(0), last)
            right = exits[taken, torch.arange(len(y))].argmax(1) == y
            if right.double().mean() >= full - max_drop:
                break
        model.thresholds.fill_(threshold)  # type: ignore[operator, union-attr]

    return calibrate
