"""Sponge examples: as many activations as possible that are not zero."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from robustdyn.attacks.ascent import ascend
from robustdyn.attacks.load_objectives import activation_density
from robustdyn.attacks.objectives import get_objective
from robustdyn.attacks.parameters import check_run, check_step_size
from robustdyn.attacks.pgd import FixedStep
from robustdyn.attacks.registry import register_attack
from robustdyn.errors import UserError
from robustdyn.threat import Threat
from robustdyn.trace import Trace


def density(logits: Tensor, y: Tensor, trace: Trace) -> Tensor:
    """Return the smooth part of activations that are not zero, (B,); see `activation_density`.

    Raises:
        UserError: if the model calls no activation function that can be zero.
    """
    if not trace.activations:
        raise UserError(
            "Sponge examples light up rectifiers, and this model has none.",
            "Choose a model with ReLU or its kin, or the attack 'autoslow'.",
        )
    return activation_density(logits, y, trace)


def _check_values(*, steps: int, step_size: float | None) -> None:
    check_run(steps=steps, restarts=1, random_start=False)
    check_step_size(step_size)


@register_attack(check_values=_check_values, needs="rectifiers")
def sponge(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    objective: None,
    seeds: Sequence[int],
    steps: int = 100,
    step_size: float | None = None,
) -> Tensor:
    """Return inputs (B, ...) that light up the most activations: sponge examples.

    Shumailov et al., EuroS&P 2021, arXiv:2006.03463. Energy on hardware that skips zeros rises with
    the part of activations that are not zero; gates are not aimed at, so their MACs may fall.
    Keeps the iterate of the largest density, the objective `activation_density`. Deviations: signed
    gradient steps inside the threat, where theirs are L-BFGS without a bound, and a genetic search.

    Args:
        steps: gradient steps.
        step_size: in units of the input; by default 2.5 eps / steps.

    Raises:
        UserError: if the model has no rectifier or the like.
    """
    method = FixedStep(2.5 * threat.eps / steps if step_size is None else step_size)
    goal = replace(get_objective("activation_density"), value=density)
    limits: dict[str, Any] = {"threat": threat, "objective": goal, "seeds": seeds}
    return ascend(method, model, x, y, **limits, steps=steps, random_start=False).x
