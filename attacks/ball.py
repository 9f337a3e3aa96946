"""The geometry of a threat's ball: random points and steepest directions, in every norm."""

from collections.abc import Sequence

import torch
from torch import Tensor

from robustdyn.attacks.draws import normal, uniform
from robustdyn.attacks.rows import over_values
from robustdyn.threat import Threat

L1_PART = 0.01  # of the values that one step changes under l1


def surface(x: Tensor, threat: Threat, seeds: Sequence[int], *, stream: int = 0) -> Tensor:
    """Return random points on the surface of the ball around 0, (B, ...).

    linf: eps or -eps for every value, by a fair coin. l2 and l1: uniform on the sphere.
    """
    if threat.norm == "linf":
        return threat.eps * (uniform(seeds, x, stream=stream) < 0.5).to(x).mul(2).sub(1)
    direction = _free(_direction_draw(x, threat, seeds, stream), threat)
    order = 2 if threat.norm == "l2" else 1
    length = direction.flatten(1).norm(p=order, dim=1).clamp(min=torch.finfo(x.dtype).tiny)
    return threat.eps * direction / over_values(length, x)


def _direction_draw(x: Tensor, threat: Threat, seeds: Sequence[int], stream: int) -> Tensor:
    if threat.norm == "l2":
        return normal(seeds, x, stream=stream)
    centred = uniform(seeds, x, stream=stream).mul(2).sub(1)  # a Laplace variable by inversion
    return -centred.sign() * torch.log1p(-centred.abs())


def inside(x: Tensor, threat: Threat, seeds: Sequence[int], *, stream: int) -> Tensor:
    """Return uniform random points inside the ball around 0, (B, ...)."""
    if threat.norm == "linf":
        return threat.eps * uniform(seeds, x, stream=stream).mul(2).sub(1)
    radius = uniform(seeds, x[:, :1].flatten(1)[:, :1], stream=stream)[:, 0]
    radius = radius ** (1 / _dimensions(x, threat))
    if threat.norm == "l1":
        return over_values(radius, x) * surface(x, threat, seeds, stream=stream)
    direction = steepest(_free(normal(seeds, x, stream=stream), threat), "l2")
    return threat.eps * over_values(radius, x) * direction


def _dimensions(x: Tensor, threat: Threat) -> Tensor:
    """How many values of each sample may change, (B,) or scalar."""
    if threat.mask is None:
        return torch.tensor(float(x[0].numel()), dtype=x.dtype, device=x.device)
    return threat.mask.expand_as(x).flatten(1).sum(1).clamp(min=1).to(x)


def _free(values: Tensor, threat: Threat) -> Tensor:
    return values if threat.mask is None else values * threat.mask


def steepest(gradient: Tensor, norm: str, *, part: float | Tensor = L1_PART) -> Tensor:
    """Return the direction (B, ...) of length 1 in the norm in which to step.

    linf and l2: steepest ascent. l1: the signs of the largest values, `part` of them (one number,
    or one per sample), instead of the single largest (Tramer and Boneh 2019, arXiv:1904.13000).
    """
    if norm == "linf":
        return gradient.sign()
    if norm == "l2":
        gradient = gradient / _length(gradient.abs().flatten(1).amax(1), gradient)
        return gradient / _length(gradient.flatten(1).norm(dim=1), gradient)
    size = gradient.abs().flatten(1)
    values = size.shape[1]
    kept = (torch.as_tensor(part, device=size.device) * values).long().clamp(1, values)
    kept = kept.expand(len(size))
    least = size.sort(1, descending=True).values.gather(1, kept[:, None] - 1)
    signs = gradient.sign() * (size >= least).reshape(gradient.shape)
    return signs / _length(signs.abs().flatten(1).sum(1), gradient)


def _length(length: Tensor, like: Tensor) -> Tensor:
    return over_values(torch.where(length > 0, length, torch.ones_like(length)), like)
