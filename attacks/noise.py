"""Random noise of full size: the baseline that every attack must beat."""

from collections.abc import Sequence

from torch import Tensor, nn

from robustdyn.attacks.ball import surface
from robustdyn.attacks.registry import register_attack
from robustdyn.threat import Threat


@register_attack()
def clean(
    model: nn.Module, x: Tensor, y: Tensor, *, threat: Threat, objective: None, seeds: Sequence[int]
) -> Tensor:
    """Return the inputs unchanged."""
    return x


@register_attack()
def noise(
    model: nn.Module, x: Tensor, y: Tensor, *, threat: Threat, objective: None, seeds: Sequence[int]
) -> Tensor:
    """Return the inputs with one draw of random noise on the surface of the threat's ball.

    linf: eps or -eps for every value, by a fair coin. l2, l1: a uniform direction of length eps.
    Then cut to the bounds, and under a mask to what may change.
    """
    return threat.project(x + surface(x, threat, seeds), x)
