"""Random noise of full size: the baseline that every attack must beat."""

from collections.abc import Sequence

from torch import Tensor, nn

from robustdyn.attacks.draws import normal, uniform
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

    linf: eps or -eps for every value, by a fair coin. l2: a uniform direction of length eps. Then
    cut to the bounds.
    """
    return threat.project(x + surface(x, threat, seeds), x)


def surface(x: Tensor, threat: Threat, seeds: Sequence[int], *, stream: int = 0) -> Tensor:
    """Return random points on the surface of the ball around 0, (B, ...)."""
    if threat.norm == "linf":
        return threat.eps * (uniform(seeds, x, stream=stream) < 0.5).to(x).mul(2).sub(1)
    direction = normal(seeds, x, stream=stream)
    length = direction.flatten(1).norm(dim=1).reshape(-1, *[1] * (x.dim() - 1))
    return threat.eps * direction / length
