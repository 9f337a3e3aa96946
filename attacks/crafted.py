"""An attack as it is crafted on one model, its source, and shown to others: transfer."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from robustdyn.attacks.curves import recording
from robustdyn.attacks.registry import Attack
from robustdyn.threat import Threat


def crafted_on(source: nn.Module, method: Attack, name: str) -> Attack:
    """Return the attack that answers for any model with what `method` finds on `source`.

    It is called for example "pgd from skipnet". Each batch is attacked once, however many models
    ask. The curve of its objective is recorded for the source alone: it tells nothing of others.

    Args:
        source: maps inputs in [0, 1] to logits (B, K).
        method: any attack.
        name: of the source.
    """
    known: dict[tuple[int, ...], Tensor] = {}

    def run(
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        threat: Threat,
        objective: Any,
        seeds: Sequence[int],
        **params: Any,
    ) -> Tensor:
        batch = tuple(seeds)
        if batch not in known:
            goals = {"threat": threat, "objective": objective, "seeds": seeds}
            with nullcontext() if model is source else recording():
                known[batch] = method(source, x, y, **goals, **params)
        return known[batch]

    return replace(method, name=f"{method.name} from {name}", run=run, source=name)
