"""Training losses: (logits, y, trace, progress) -> scalar, to be minimised.

Each maker returns a loss whose repr names the maker and its arguments, for the model card.
"""

from collections.abc import Callable
from functools import wraps
from math import cos, pi

import torch
from torch import Tensor
from torch.nn import functional as F

from robustdyn.recipe import Loss
from robustdyn.trace import Trace


class _Described:
    """A function that prints as the call that made it."""

    def __init__(self, function: Callable, text: str):
        self._function = function
        self._text = text

    def __call__(self, *args):
        return self._function(*args)

    def __repr__(self) -> str:
        return self._text


def described(maker: Callable) -> Callable:
    """Decorate a function that makes a loss or a calibration: its product prints as the call."""

    @wraps(maker)
    def make(**params):
        text = ", ".join(f"{key}={value!r}" for key, value in params.items())
        return _Described(maker(**params), f"{maker.__name__}({text})")

    return make


@described
def cross_entropy() -> Loss:
    """Return the cross-entropy of the logits."""

    def loss(logits: Tensor, y: Tensor, trace: Trace, progress: float) -> Tensor:
        return F.cross_entropy(logits, y)

    return loss


@described
def deep_supervision(*, final_weight: float) -> Loss:
    """Return CE_last + sum of w_k(progress) * CE_k over the internal exits.

    The weights of Shallow-Deep Networks (Kaya et al. 2019, arXiv:1810.07052): w_k rises linearly
    from 0.01 to the exit's place in the network, times `final_weight`.
    """

    def loss(logits: Tensor, y: Tensor, trace: Trace, progress: float) -> Tensor:
        *inner, last = trace.exits
        total = F.cross_entropy(last.logits.float(), y)
        for k, exit in enumerate(inner):
            place = final_weight * (k + 1) / len(trace.exits)
            weight = 0.01 + progress * (place - 0.01)
            total = total + weight * F.cross_entropy(exit.logits.float(), y)
        return total

    return loss


@described
def budget(*, target: float, weight: float, floor: float) -> Loss:
    """Return CE + weight * ((mean expected compute / full compute - target)^2 + bounds).

    The target falls from 1 to `target` over the first third of training, so that gates do not
    collapse before the features exist. Meanwhile each gate's rate, its mean chance to run, is held
    inside bounds that widen from [target, target] to [floor, 1 - floor]; the squares by which
    rates leave them are summed. After Verelst and Tuytelaars 2020, arXiv:1912.03203, whose bounds
    widen to [0, 1], where a gate can stay shut for all inputs.
    """

    def loss(logits: Tensor, y: Tensor, trace: Trace, progress: float) -> Tensor:
        warm = min(1.0, progress / 0.33)
        used = (trace.expected_macs() / trace.max_macs()).mean()
        tight = cos(pi / 2 * warm) ** 2
        upper, lower = 1 - floor - tight * (1 - floor - target), floor + tight * (target - floor)
        rates = [torch.sigmoid(d.margin.float()).mean() for d in trace.decisions.values()]
        outside = [F.relu(r - upper).square() + F.relu(lower - r).square() for r in rates]
        penalty = (used - (1.0 + warm * (target - 1.0))).square() + torch.stack(outside).sum()
        return F.cross_entropy(logits, y) + weight * penalty

    return loss


@described
def gate_rates(*, target: float, weight: float, spread: float) -> Loss:
    """Return CE + weight * mean (rate - target)^2 - spread * mean variance, means over gates.

    A gate's rate and variance are those of its chance to run, over the batch. A target for every
    gate keeps each from staying open or shut (Veit and Belongie 2018, arXiv:1711.11503), the
    variance makes it depend on the input (Bengio et al. 2015, arXiv:1511.06297). The target falls
    from 1 over the first third of training.
    """

    def loss(logits: Tensor, y: Tensor, trace: Trace, progress: float) -> Tensor:
        warm = min(1.0, progress / 0.33)
        aim = 1.0 + warm * (target - 1.0)
        chance = torch.stack([torch.sigmoid(d.margin.float()) for d in trace.decisions.values()])
        off = (chance.mean(1) - aim).square().mean()
        return F.cross_entropy(logits, y) + weight * off - warm * spread * chance.var(1).mean()

    return loss


@described
def step_cost(*, weight: float) -> Loss:
    """Return CE + weight * mean number of kept steps (Campos et al. 2018, arXiv:1708.06834)."""

    def loss(logits: Tensor, y: Tensor, trace: Trace, progress: float) -> Tensor:
        steps = torch.stack([d.keep for d in trace.decisions.values() if d.kind == "step"])
        return F.cross_entropy(logits, y) + weight * steps.sum(0).mean()

    return loss
