"""How a model is trained: the recorded recipe of `robustdyn train`."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from robustdyn.trace import Trace

# (logits (B, K), labels (B,), trace, progress in [0, 1]) -> scalar, to be minimised
Loss = Callable[[Tensor, Tensor, Trace, float], Tensor]
# (model in eval mode, inputs, labels of the calibration split) -> None; sets thresholds
Calibrate = Callable[[nn.Module, list[Tensor], list[Tensor]], None]


@dataclass(frozen=True)
class Recipe:
    """Everything that, with the seed, decides the trained weights.

    Attributes:
        epochs: passes over the training split.
        loss: see Loss.
        calibrate: fits thresholds on the calibration split, after training.
        optimizer: "sgd" (Nesterov, one-cycle) or "adamw" (one-cycle).
        lr: the largest learning rate of the cycle.
        batch_size: samples per step.
        weight_decay: on weights, not on norms and biases.
        augment: "flip_shift" (images), "jitter" (sequences) or "none".
        estimator: the gradient estimator of the gates in training.
        full_share: the part of the batches that is trained with every gate open, so that full
            inference stays meaningful (the sandwich rule of Yu and Huang 2019, arXiv:1903.05134).
        precision: "bfloat16" (autocast) or "float32".
        seed: of the initial weights, the order of samples, augmentation and gate noise.
    """

    epochs: int
    loss: Loss
    calibrate: Calibrate | None = None
    optimizer: str = "sgd"
    lr: float = 0.1
    batch_size: int = 128
    weight_decay: float = 5e-4
    augment: str = "flip_shift"
    estimator: str = "straight_through"
    full_share: float = 0.0
    precision: str = "bfloat16"
    seed: int = 0
