"""The windows of the Square attack: where a candidate differs, and by how much."""

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from robustdyn.attacks.rows import over_values
from robustdyn.threat import Threat

_TILES = 5  # along each side, of the first guess under l2 and l1
DRAWS = 5  # numbers per candidate that a window reads, besides one per channel


class Layout(NamedTuple):
    """Inputs of any rank seen as (B, C, H, W); W is 1 for a line of positions."""

    shape: torch.Size
    channels: int
    height: int
    width: int

    @staticmethod
    def of(x: Tensor) -> "Layout":
        if x.dim() == 2:
            return Layout(x.shape[1:], 1, x.shape[1], 1)
        if x.dim() == 3:  # (B, T, F)
            return Layout(x.shape[1:], x.shape[2], x.shape[1], 1)
        *front, height, width = x.shape[1:]
        return Layout(x.shape[1:], torch.Size(front).numel(), height, width)

    def spread(self, x: Tensor) -> Tensor:
        if len(self.shape) == 2:
            x = x.transpose(1, 2)
        return x.reshape(len(x), self.channels, self.height, self.width)

    def gather(self, x: Tensor) -> Tensor:
        if len(self.shape) == 2:
            return x.reshape(len(x), self.channels, self.height).transpose(1, 2)
        return x.reshape(len(x), *self.shape)

    def window(self, share: float, *, least: int, odd: bool) -> tuple[int, int]:
        """Return the height and width of a window that covers a share of the positions."""
        if self.width == 1:
            side = max(round(share * self.height), least)
            return min(side, self.height), 1
        side = max(round((share * self.height * self.width) ** 0.5), least)
        side = min(side + (odd and side % 2 == 0), self.height, self.width)
        return side, side


def _signs(numbers: Tensor) -> Tensor:
    return torch.where(numbers < 0.5, -1.0, 1.0)


def _corner(numbers: Tensor, layout: Layout, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The first row and column (n, 1, 1, 1) of a random window, from numbers (n, 2)."""
    room = numbers.new_tensor([layout.height - size[0] + 1, layout.width - size[1] + 1])
    top, left = (numbers * room).long().unbind(1)
    return top[:, None, None, None], left[:, None, None, None]


def _offsets(corner: tuple[Tensor, Tensor], layout: Layout) -> tuple[Tensor, Tensor]:
    """How far each position lies below and right of the corner: (n, 1, H, 1) and (n, 1, 1, W)."""
    device = corner[0].device
    down = torch.arange(layout.height, device=device)[:, None] - corner[0]
    right = torch.arange(layout.width, device=device)[None] - corner[1]
    return down, right


def _within(offsets: tuple[Tensor, Tensor], size: tuple[int, int]) -> Tensor:
    down, right = offsets
    return (down >= 0) & (down < size[0]) & (right >= 0) & (right < size[1])  # (n, 1, H, W)


def linf_window(
    layout: Layout, change: Tensor, threat: Threat, share: float, drawn: Tensor
) -> Tensor:
    """Return `change` (n, C, H, W) with one window set to eps or -eps, by channel."""
    size = layout.window(share, least=1, odd=False)
    inside = _within(_offsets(_corner(drawn[:, :2], layout, size), layout), size)
    signs = _signs(drawn[:, DRAWS : DRAWS + layout.channels])[:, :, None, None]
    return torch.where(inside, threat.eps * signs, change)


def mass_window(
    layout: Layout, change: Tensor, threat: Threat, share: float, drawn: Tensor
) -> Tensor:
    """Return `change` (n, C, H, W) with the mass of two windows, and eps's rest, in the first."""
    order = 2 if threat.norm == "l2" else 1
    size = layout.window(share, least=3, odd=True)
    offsets = _offsets(_corner(drawn[:, :2], layout, size), layout)
    first = _within(offsets, size)
    second = _within(_offsets(_corner(drawn[:, 2:4], layout, size), layout), size)

    def mass(values: Tensor, dims: tuple[int, ...]) -> Tensor:
        return values.abs().pow(order).sum(dims, keepdim=True)

    spare = (threat.eps**order - mass(change, (1, 2, 3))).clamp(min=0) / layout.channels
    room = (spare + mass(change * (first | second), (2, 3))) ** (1 / order)  # (n, C, 1, 1)
    old = change * first
    old = old / (mass(old, (1, 2, 3)) ** (1 / order) + 1e-12)
    signs = _signs(drawn[:, DRAWS : DRAWS + layout.channels])[:, :, None, None]
    new = old + signs * _placed(offsets, size, drawn[:, 4] < 0.5, first, order)
    new = new / (mass(new, (2, 3)) ** (1 / order) + 1e-12) * room
    change = torch.where(second, torch.zeros_like(change), change)
    return torch.where(first, new, change)


def _placed(
    offsets: tuple[Tensor, Tensor],
    size: tuple[int, int],
    turned: Tensor,
    inside: Tensor,
    order: int,
) -> Tensor:
    """The bump of a window at each sample's window, turned for some; (n, 1, H, W)."""
    down, right = (o.clamp(0, s - 1) for o, s in zip(offsets, size, strict=True))
    bump = _bump(*size, order).to(inside.device)
    straight = bump[down, right]
    if size[0] != size[1]:
        return straight * inside
    return torch.where(turned[:, None, None, None], bump.T[down, right], straight) * inside


@cache
def _bump(height: int, width: int, order: int) -> Tensor:
    """Two pyramids, one up and one down, of length 1 in the norm; (height, width)."""
    top = _pyramid(height // 2, width)
    both = torch.cat([top, -_pyramid(height - height // 2, width)])
    return both / both.norm(p=order)


def _pyramid(height: int, width: int) -> Tensor:
    """A bump that falls with the squared distance from its middle, of length 1 in l2."""
    bump = torch.zeros(height, width)
    if not height:
        return bump
    middle = height // 2, width // 2
    for ring in range(max(middle) + 1):
        (top, bottom), (left, right) = (
            (max(m - ring, 0), min(m + ring + 1, s))
            for m, s in zip(middle, (height, width), strict=True)
        )
        bump[top:bottom, left:right] += 1 / (ring + 1) ** 2
    return bump / bump.norm()


def first_guess(layout: Layout, threat: Threat, numbers: Tensor) -> Tensor:
    """Return stripes (linf) or tiles of bumps from numbers (n, C, H, W); of length eps."""
    if threat.norm == "linf":
        stripes = numbers[:, :, :1] if layout.width > 1 else numbers
        return threat.eps * _signs(stripes).expand_as(numbers)
    order = 2 if threat.norm == "l2" else 1
    tall, wide = (max(side // _TILES, 1) for side in (layout.height, layout.width))
    change = torch.zeros_like(numbers)
    bump = _bump(tall, wide, order).to(numbers.device)
    for top in range(0, layout.height - tall + 1, tall):
        for left in range(0, layout.width - wide + 1, wide):
            sign = _signs(numbers[:, :, top : top + 1, left : left + 1])
            change[:, :, top : top + tall, left : left + wide] = sign * bump
    length = change.abs().pow(order).sum((1, 2, 3)) ** (1 / order)
    return threat.eps * change / over_values(length.clamp(min=1e-12), change)
