"""SlowFormer: one patch that makes every input expensive."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robustdyn.attacks.parameters import check_part
from robustdyn.attacks.registry import register_attack
from robustdyn.attacks.universal import Plan, apply, check_plan, crafted
from robustdyn.threat import Threat


def _check_values(*, area: float, samples: int, steps: int, step_size: float | None) -> None:
    check_part(area=area)
    check_plan(samples=samples, steps=steps, step_size=step_size)


@register_attack(check_values=_check_values, needs="a calibration split")
def slowformer(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    objective: None,
    seeds: Sequence[int],
    area: float = 0.02,
    samples: int = 200,
    steps: int = 30,
    step_size: float | None = None,
) -> Tensor:
    """Return inputs (B, ...) with one patch in the corner, the same for all: SlowFormer.

    Navaneet et al., CVPR 2024, arXiv:2310.02544. The patch replaces what is there; it is trained
    to raise the expected compute (for A-ViT theirs raises the mean ponder, for AdaViT the use of
    heads, layers and tokens: the same up to the weights, which are MACs here). Crafted on the
    calibration split, see `universal`. The paper's patch has no bound: give linf and eps = 1; a
    smaller eps is kept, too. Deviations: signed momentum steps on a fixed set of samples, where
    theirs are AdamW's over all of train; MACs of each sample, not of the rounded mean token count;
    the content of the largest mean exact MACs is kept.

    Args:
        area: as a part of the input's positions; theirs is .02 to .08.
        samples, steps, step_size: see `universal`; the step is a part of the bounds' range.

    Raises:
        UserError: see `universal`.
    """
    plan = Plan(samples, steps, step_size, area=area)
    change = crafted(model, x, plan, threat=threat, objective="compute")
    return apply(change, x, torch.zeros_like(y), plan, threat)
