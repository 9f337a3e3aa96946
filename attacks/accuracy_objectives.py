"""Objectives that make a model wrong, judged by the class margin of the hard model."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from robustdyn.attacks.objectives import (
    FAMILIES,
    Objective,
    Value,
    class_margin,
    least_likely,
    positive,
    register_objective,
)
from robustdyn.errors import UserError
from robustdyn.trace import Trace


def cross_entropy(logits: Tensor, y: Tensor, trace: Trace) -> Tensor:
    """Return the cross-entropy, (B,); Madry et al. 2018, arXiv:1706.06083."""
    return F.cross_entropy(logits, y, reduction="none")


def dlr(logits: Tensor, y: Tensor, trace: Trace) -> Tensor:
    """Return the difference-of-logits ratio, (B,): -(z_y - max other) / (z_1st - z_3rd).

    Croce and Hein 2020, arXiv:2003.01690: no change of the logits' scale or offset changes it.
    Deviation: with two classes, where there is no third logit, the divisor is 1.
    """
    return -class_margin(logits, y) / _spread(logits)


def _spread(logits: Tensor) -> Tensor:
    """The largest minus the third largest logit, (B,); 1 with fewer than three classes."""
    if logits.shape[1] < 3:
        return torch.ones_like(logits[:, 0])
    top = logits.topk(3, dim=1).values
    return (top[:, 0] - top[:, 2]).clamp(min=1e-12)


def exits_average(logits: Tensor, y: Tensor, trace: Trace) -> Tensor:
    """Return the mean cross-entropy over all exits, (B,); without exits, that of the logits.

    Triple Wins (Hu et al. 2020, arXiv:2002.10025), "average attack".
    """
    return _over_exits(logits, y, trace).mean(0)


def exits_max_average(logits: Tensor, y: Tensor, trace: Trace) -> Tensor:
    """Return log mean exp of the cross-entropies of all exits, (B,): between largest and mean.

    After the "max-average attack" of Triple Wins (Hu et al. 2020, arXiv:2002.10025). Deviation:
    they attack every exit on its own and keep the attack with the largest average; this is one
    objective, whose gradient is led by the exits that are easiest to fool.
    """
    losses = _over_exits(logits, y, trace)
    return losses.logsumexp(0) - torch.log(torch.tensor(float(len(losses))))


def _over_exits(logits: Tensor, y: Tensor, trace: Trace) -> Tensor:
    """The cross-entropy of each exit, (exits, B)."""
    answers = [exit.logits for exit in trace.exits] or [logits]
    return torch.stack([F.cross_entropy(answer, y, reduction="none") for answer in answers])


def _untargeted(value: Value, *, traced: bool = False) -> Objective:
    return Objective(
        value.__name__,
        value=value,
        score=lambda logits, y, trace: -class_margin(logits, y),
        reached=positive,
        traced=traced,
    )


for _value in (cross_entropy, dlr):
    register_objective(_untargeted(_value))
for _value in (exits_average, exits_max_average):
    register_objective(_untargeted(_value, traced=True))
register_objective(
    Objective(
        "targeted_cross_entropy",
        value=lambda logits, y, trace: -cross_entropy(logits, y, trace),
        score=lambda logits, y, trace: class_margin(logits, y),
        reached=positive,
        targeted=True,
        aim=least_likely,
    )
)


def targeted_dlr(rank: str) -> Objective:
    """Return the objective that moves a sample to its rank-th most likely wrong class, rank 1 ...

    The targeted DLR of Croce and Hein 2020, arXiv:2003.01690:
    -(z_y - z_t) / (z_1st - (z_3rd + z_4th) / 2). The target t is chosen on the clean input; a
    sample is done as soon as it is wrong, whichever class it turned to. Deviation: with fewer than
    four classes the divisor is that of the untargeted ratio.

    Raises:
        UserError: if the rank is no whole number of at least 1.
    """
    if not (rank.isdecimal() and int(rank) >= 1):
        raise UserError(f"'{rank}' is no rank of a class.", "Write targeted_dlr:1, :2 and so on.")

    def aim(logits: Tensor, y: Tensor) -> Tensor:
        others = logits.scatter(1, y[:, None], float("-inf"))
        ranked = others.argsort(dim=1, descending=True, stable=True)
        return torch.stack([y, ranked[:, min(int(rank), logits.shape[1] - 1) - 1]], 1)

    def value(logits: Tensor, pair: Tensor, trace: Trace) -> Tensor:
        own, target = logits.gather(1, pair).unbind(1)
        return (target - own) / _targeted_spread(logits)

    return Objective(
        f"targeted_dlr:{int(rank)}",
        value=value,
        score=lambda logits, pair, trace: -class_margin(logits, pair[:, 0]),
        reached=positive,
        aim=aim,
    )


def _targeted_spread(logits: Tensor) -> Tensor:
    if logits.shape[1] < 4:
        return _spread(logits)
    top = logits.topk(4, dim=1).values
    return (top[:, 0] - (top[:, 2] + top[:, 3]) / 2).clamp(min=1e-12)


_FAMILIES: tuple[Callable[[str], Objective], ...] = (targeted_dlr,)
FAMILIES.update({family.__name__: family for family in _FAMILIES})
