"""Threat: what the attacker may change."""

from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from robustdyn.errors import UserError, suggest

NORMS = ("linf", "l2")


@dataclass(frozen=True)
class Threat:
    """A norm ball around each sample, cut to the bounds of valid inputs.

    Attributes:
        norm: "linf" or "l2", over all values of one sample.
        eps: the radius, in units of the input (images and sequences lie in [0, 1]).
        bounds: the smallest and largest valid input value.

    Raises:
        UserError: if the norm is unknown, eps is negative or not finite, or the bounds are empty.
    """

    norm: str
    eps: float
    bounds: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise UserError(
                f"Unknown norm '{self.norm}'.",
                f"{suggest(self.norm, NORMS)}Choose one of: {', '.join(NORMS)}.",
            )
        if not (isfinite(self.eps) and self.eps >= 0):
            raise UserError(
                f"eps is {self.eps}, which is no radius.",
                "Give a finite eps of at least 0, for example 8/255.",
            )
        if not self.bounds[0] < self.bounds[1]:
            raise UserError(f"The bounds {self.bounds} hold no input.", "Give (smallest, largest).")

    def distance(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Return the distance (B,) between inputs (B, ...) in this threat's norm."""
        return distance(x_adv, x, self.norm)

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Return the inputs (B, ...) moved into the ball around x and into the bounds."""
        if self.norm == "linf":
            lowest, highest = x - self.eps, x + self.eps
            return torch.clamp(torch.clamp(x_adv, lowest, highest), *self.bounds)
        delta = x_adv - x
        length = self.distance(x_adv, x).reshape(-1, *[1] * (x.dim() - 1))
        scale = self.eps / length.clamp(min=max(self.eps, torch.finfo(x.dtype).tiny))
        return torch.clamp(x + delta * scale, *self.bounds)

    def is_met(self, x_adv: Tensor, x: Tensor, *, tolerance: float = 1e-6) -> Tensor:
        """Return (B,) bool: finite, inside the bounds and the ball, up to `tolerance`.

        The tolerance is absolute for the bounds, and for the norm grows with eps above 1.
        """
        low, high = self.bounds
        slack = tolerance * max(1.0, self.eps)
        values = x_adv.flatten(1)
        finite = values.isfinite().all(1)
        bounded = ((values >= low - tolerance) & (values <= high + tolerance)).all(1)
        return finite & bounded & (self.distance(x_adv, x) <= self.eps + slack)


def distance(x_adv: Tensor, x: Tensor, norm: str) -> Tensor:
    """Return the distance (B,) between inputs (B, ...), "linf" or "l2"."""
    delta = (x_adv - x).flatten(1)
    return delta.abs().amax(1) if norm == "linf" else delta.square().sum(1).sqrt()
