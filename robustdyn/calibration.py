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

    The smallest of 0.50, 0.51 ... 0.99 at which the accuracy is at most `max_drop` below that at
    0.999, where hardly a sample exits early. The model answers as `early_exits` does with
    `most_confident`.
    """

    def calibrate(model: nn.Module, inputs: list[Tensor], labels: list[Tensor]) -> None:
        logits = []  # per batch, (exits, B, K)
        for x in inputs:
            with trace() as passed:
                model(x)
            logits.append(torch.stack([exit.logits for exit in passed.exits]))
        exits, y = torch.cat(logits, 1), torch.cat(labels)
        right = exits.argmax(2) == y  # (exits, N)
        sure = torch.sigmoid(torch.stack([confidence_logit(part) for part in exits]))  # (exits, N)

        def accuracy(threshold: float) -> float:
            stops = sure >= threshold
            answer = torch.where(stops.any(0), stops.int().argmax(0), sure.argmax(0))
            return right[answer, torch.arange(len(y))].double().mean().item()

        enough = accuracy(0.999) - max_drop
        candidates = [percent / 100 for percent in range(50, 100)]
        chosen = next((t for t in candidates if accuracy(t) >= enough), 0.999)
        model.thresholds.fill_(chosen)  # type: ignore[operator]

    return calibrate
