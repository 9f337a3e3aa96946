"""Threat: what the attacker may change."""

from dataclasses import dataclass, field
from math import isfinite

import torch
from torch import Tensor

from robustdyn.errors import UserError, suggest

NORMS = ("linf", "l2", "l1")


@dataclass(frozen=True)
class Threat:
    """A norm ball around each sample, cut to the bounds of valid inputs and to a mask.

    Attributes:
        norm: "linf", "l2" or "l1", over all values of one sample.
        eps: the radius, in units of the input (images and sequences lie in [0, 1]).
        bounds: the smallest and largest valid input value.
        mask: bool, which values may change; None lets all. One for all samples, of a shape that
            broadcasts to an input, or (B, ...) for a batch of exactly B samples.

    Raises:
        UserError: if the norm is unknown, eps is negative or not finite, the bounds are empty, or
            the mask is no bool tensor.
    """

    norm: str
    eps: float
    bounds: tuple[float, float] = (0.0, 1.0)
    mask: Tensor | None = field(default=None, compare=False)

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
        if self.mask is not None and self.mask.dtype != torch.bool:
            raise UserError(
                f"The mask is {self.mask.dtype}, not bool.", "Give True where a value may change."
            )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Threat):
            return NotImplemented
        same = (self.norm, self.eps, self.bounds) == (other.norm, other.eps, other.bounds)
        if self.mask is None or other.mask is None:
            return same and self.mask is other.mask
        return same and torch.equal(self.mask, other.mask)

    def distance(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Return the distance (B,) between inputs (B, ...) in this threat's norm."""
        return distance(x_adv, x, self.norm)

    def at(self, rows: Tensor, x: Tensor) -> "Threat":
        """Return the threat to the samples `rows` (n,) of the batch x (B, ...)."""
        if self.mask is None or self.mask.dim() < x.dim() or len(self.mask) == 1:
            return self
        return Threat(self.norm, self.eps, self.bounds, self.mask[rows])

    def project(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Return the inputs (B, ...) moved into the ball around x, the bounds and the mask.

        linf and l1: the nearest allowed input. l2: onto the ball, then into the bounds, which is
        allowed but not always the nearest.
        """
        if self.mask is not None:
            x_adv = torch.where(self.mask, x_adv, x)
        if self.norm == "linf":
            lowest, highest = x - self.eps, x + self.eps
            return torch.clamp(torch.clamp(x_adv, lowest, highest), *self.bounds)
        if self.norm == "l1":
            return _project_l1(x_adv, x, self.eps, self.bounds)
        delta = x_adv - x
        length = self.distance(x_adv, x).reshape(-1, *[1] * (x.dim() - 1))
        scale = self.eps / length.clamp(min=max(self.eps, torch.finfo(x.dtype).tiny))
        return torch.clamp(x + delta * scale, *self.bounds)

    def is_met(self, x_adv: Tensor, x: Tensor, *, tolerance: float = 1e-6) -> Tensor:
        """Return (B,) bool: finite, inside bounds, ball and mask, up to `tolerance`.

        The tolerance is absolute for the bounds, and for the norm grows with eps above 1. What the
        mask forbids must be unchanged, without tolerance.
        """
        low, high = self.bounds
        slack = tolerance * max(1.0, self.eps)
        values = x_adv.flatten(1)
        finite = values.isfinite().all(1)
        bounded = ((values >= low - tolerance) & (values <= high + tolerance)).all(1)
        met = finite & bounded & (self.distance(x_adv, x) <= self.eps + slack)
        if self.mask is not None:
            met = met & (self.mask | (x_adv == x)).flatten(1).all(1)
        return met


def distance(x_adv: Tensor, x: Tensor, norm: str) -> Tensor:
    """Return the distance (B,) between inputs (B, ...), "linf", "l2" or "l1"."""
    delta = (x_adv - x).flatten(1)
    if norm == "linf":
        return delta.abs().amax(1)
    return delta.square().sum(1).sqrt() if norm == "l2" else delta.abs().sum(1)


def _project_l1(x_adv: Tensor, x: Tensor, eps: float, bounds: tuple[float, float]) -> Tensor:
    """Return the point of the l1 ball cut to the bounds that is nearest to x_adv, (B, ...).

    Croce and Hein 2021, arXiv:2103.01208. It has the form x + sign(d) * clamp(|d| - t, 0, room),
    with d = x_adv - x, room the way from x to the bound on d's side, and the least t >= 0 for which
    its length is at most eps. The length is piecewise linear in t, so t is exact: found between
    two of the places where its slope changes.
    """
    if eps == 0:
        return x.clone()
    delta = (x_adv - x).flatten(1).double()  # (B, D)
    size = delta.abs()
    start = x.flatten(1).double()
    room = torch.where(delta > 0, bounds[1] - start, start - bounds[0]).clamp(min=0)
    places, order = torch.cat([(size - room).clamp(min=0), size], 1).sort(1)  # (B, 2D)
    turn = torch.cat([-torch.ones_like(size), torch.ones_like(size)], 1).gather(1, order)
    slope = turn.cumsum(1)  # of the length right of each place
    length = torch.minimum(size, room).sum(1, keepdim=True)  # at t = 0, and up to the first place
    fall = slope[:, :-1] * places.diff(dim=1)
    lengths = torch.cat([length, length + fall.cumsum(1)], 1)  # (B, 2D), at each place
    last = (lengths > eps).sum(1, keepdim=True) - 1  # the last place where it is too long
    at = last.clamp(min=0)
    steep = slope.gather(1, at).clamp(max=-1)
    threshold = places.gather(1, at) + (lengths.gather(1, at) - eps) / -steep
    threshold = torch.where(last < 0, torch.zeros_like(threshold), threshold)
    moved = start + delta.sign() * torch.minimum((size - threshold).clamp(min=0), room)
    unchanged = (last < 0) & (size <= room)  # exactly, without a rounding
    moved = torch.where(unchanged, x_adv.flatten(1).double(), moved)
    return moved.to(x.dtype).reshape(x.shape).clamp(*bounds)
