"""A few time steps of a sequence: those with the largest gradients, and no other."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from robustdyn.attacks.apgd import auto_step
from robustdyn.attacks.ascent import aimed, ascend
from robustdyn.attacks.look import look
from robustdyn.attacks.objectives import Objective, get_objective
from robustdyn.attacks.parameters import check_whole
from robustdyn.attacks.registry import register_attack
from robustdyn.attacks.rows import filled_up
from robustdyn.errors import UserError
from robustdyn.threat import Threat


def _check_values(*, frames: int, steps: int) -> None:
    check_whole(frames=frames, steps=steps)


@register_attack(objectives=("cross_entropy", "*"), check_values=_check_values, needs="sequences")
def frames(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    objective: "str | Objective" = "cross_entropy",
    seeds: Sequence[int],
    frames: int = 3,
    steps: int = 50,
) -> Tensor:
    """Return sequences (B, T, ...) that differ from x in `frames` time steps at most.

    After sparse attacks on video (Wei et al. 2019, arXiv:1803.02536). The time steps are chosen
    once, on the clean input, by how fast the objective can rise there within the threat: by the
    dual norm of its gradient. Then APGD runs inside them. Deviation: theirs finds the frames by a
    group-sparse penalty.

    Args:
        model, x, y, seeds: as in `pgd`; x is (B, T, F), or a clip (B, T, C, H, W).
        frames: time steps that may change; all, where a sequence has no more.
        steps: gradient steps, and one gradient to choose.

    Raises:
        UserError: if the inputs are no sequences.
    """
    if x.dim() not in (3, 5):
        raise UserError(
            f"Inputs of shape {tuple(x.shape[1:])} have no time steps.",
            "Choose a model of sequences or clips, or the attack 'patch'.",
        )
    goal = get_objective(objective)
    chosen = salient_frames(model, x, y, threat, goal, seeds, frames)
    inside = replace(threat, mask=chosen if threat.mask is None else chosen & threat.mask)
    limits: dict[str, Any] = {"threat": inside, "objective": goal, "seeds": seeds}
    step = auto_step(threat.norm, steps)
    return ascend(step, model, x, y, **limits, steps=steps, random_start=False).x


def salient_frames(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    objective: Objective,
    seeds: Sequence[int],
    count: int,
) -> Tensor:
    """Return the bool mask (B, T, ...) of the time steps with the largest gradients."""
    rows = filled_up(torch.arange(len(x), device=x.device))
    labels = aimed(model, x, y, objective)[rows]
    price = torch.ones_like(x[rows].flatten(1)[:, 0])
    each = [seeds[row] for row in rows.tolist()]
    seen = look(model, x[rows], labels, objective, price=price, seeds=each, stream=0, eot=1)
    gradient = seen.gradient[: len(x)]
    if threat.mask is not None:
        gradient = gradient * threat.mask
    dual = {"linf": 1, "l2": 2, "l1": torch.inf}[threat.norm]
    rise = gradient.flatten(2).norm(p=dual, dim=2)  # (B, T)
    top = rise.topk(min(count, x.shape[1]), dim=1).indices
    chosen = torch.zeros_like(rise, dtype=torch.bool).scatter(1, top, True)
    return chosen.reshape(*rise.shape, *[1] * (x.dim() - 2)).expand_as(x)
