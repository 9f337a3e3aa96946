"""LGM: attack accuracy through soft gates, whose gradient knows that a step may move a gate."""

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from robustdyn import gates
from robustdyn.attacks.ascent import ascend
from robustdyn.attacks.objectives import Objective, get_objective
from robustdyn.attacks.parameters import check_number, check_run, check_step_size
from robustdyn.attacks.pgd import FixedStep
from robustdyn.attacks.registry import register_attack
from robustdyn.errors import UserError
from robustdyn.threat import Threat


def hard_forward(margin: Tensor, *, slope: float) -> Tensor:
    """Return 1 where margin > 0, else 0; backward is that of sigmoid(slope * margin)."""
    soft = gates.sigmoid(margin, slope=slope)
    return (margin > 0).to(margin.dtype) + (soft - soft.detach())


_FORWARD = {"soft": gates.sigmoid, "hard": hard_forward}


def _check_values(
    *, steps: int, step_size: float | None, random_start: bool, slope: float, forward: str
) -> None:
    check_run(steps=steps, restarts=1, random_start=random_start)
    check_step_size(step_size)
    check_number(slope=slope)
    if forward not in _FORWARD:
        raise UserError(f"forward is {forward!r}.", "Choose 'soft' or 'hard'.")


@register_attack(objectives=("cross_entropy", "*"), check_values=_check_values)
def lgm(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    objective: "str | Objective" = "cross_entropy",
    seeds: Sequence[int],
    steps: int = 10,
    step_size: float | None = None,
    random_start: bool = False,
    slope: float = 10.0,
    forward: str = "soft",
) -> Tensor:
    """Return inputs (B, ...) that maximise `objective`, by gradients through soft gates: LGM.

    The leaded gradient method of Tao et al. 2022, arXiv:2210.08159 ("Dynamics-aware Adversarial
    Attack of Adaptive Neural Networks"). The gradient at hard gates lags: after the step other
    gates are open. With gates sigmoid(slope * margin) it sees them move. Steps of BIM: signs from
    the clean input. Deviation: keeps the best iterate as judged by the hard model, and a sample
    with nothing left to gain leaves. Overrides the estimator in force.

    Args:
        steps: gradient steps.
        step_size: in units of the input; by default 2.5 eps / steps.
        random_start: by default it starts at the clean input, as in the paper.
        slope: lambda in the paper, about 10.
        forward: "soft" runs the gates softly (their `gg`), "hard" only the backward pass (`fg`).
    """
    method = FixedStep(2.5 * threat.eps / steps if step_size is None else step_size)
    with gates.using(partial(_FORWARD[forward], slope=slope)):
        return ascend(
            method,
            model,
            x,
            y,
            threat=threat,
            objective=get_objective(objective),
            seeds=seeds,
            steps=steps,
            random_start=random_start,
        ).x
