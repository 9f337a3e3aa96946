"""Adam on the perturbation, with a pull back to the clean input: the loop of several papers."""

from typing import NamedTuple

import torch
from torch import Tensor

from robustdyn.attacks.ascent import State, Step
from robustdyn.attacks.parameters import check_not_negative, check_number, check_whole
from robustdyn.threat import Threat

_DECAY, _SQUARED_DECAY = 0.9, 0.999


class AdamStep(NamedTuple):
    """A step of Adam (Kingma and Ba 2015, arXiv:1412.6980) up value - pull * |x' - x|^2.

    Papers optimise in tanh space, where a value at a bound (a black pixel) has no gradient. Here
    it is the perturbation itself that moves, and each step is projected onto the threat.
    """

    rate: float
    pull: float

    def begin(self, here: Tensor, threat: Threat) -> State:
        return torch.zeros_like(here), torch.zeros_like(here)

    def move(self, step: Step, state: State) -> tuple[Tensor, State]:
        gradient = step.look.gradient - 2 * self.pull * (step.here - step.origin)
        mean = _DECAY * state[0] + (1 - _DECAY) * gradient
        square = _SQUARED_DECAY * state[1] + (1 - _SQUARED_DECAY) * gradient.square()
        number = step.number + 1
        length = (square / (1 - _SQUARED_DECAY**number)).sqrt() + 1e-8
        stride = self.rate * mean / (1 - _DECAY**number) / length
        return step.threat.project(step.here + stride, step.origin), (mean, square)


def check_adam(*, steps: int, rate: float, pull: float, weight: float = 1.0) -> None:
    """Check the parameters of an attack by Adam.

    Raises:
        UserError: if one is out of range.
    """
    check_whole(steps=steps)
    check_number(rate=rate, weight=weight)
    check_not_negative(pull=pull, zero="no pull")
