"""Windows of inputs of any rank: squares of images, stretches of sequences."""

from typing import NamedTuple

import torch
from torch import Tensor


class Layout(NamedTuple):
    """Inputs of any rank seen as (B, C, H, W); W is 1 for a line of positions."""

    shape: torch.Size
    channels: int
    height: int
    width: int

    @staticmethod
    def of(x: Tensor) -> "Layout":
        """Return the layout of inputs (n, ...)."""
        if x.dim() == 2:
            return Layout(x.shape[1:], 1, x.shape[1], 1)
        if x.dim() == 3:  # (B, T, F)
            return Layout(x.shape[1:], x.shape[2], x.shape[1], 1)
        *front, height, width = x.shape[1:]
        return Layout(x.shape[1:], torch.Size(front).numel(), height, width)

    def spread(self, x: Tensor) -> Tensor:
        """Return inputs (n, ...) as (n, C, H, W)."""
        if len(self.shape) == 2:
            x = x.transpose(1, 2)
        return x.reshape(len(x), self.channels, self.height, self.width)

    def gather(self, x: Tensor) -> Tensor:
        """Return (n, C, H, W) in the shape of the inputs, (n, ...)."""
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


def corner_at(numbers: Tensor, layout: Layout, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return the first row and column (n, 1, 1, 1) of a random window, from numbers (n, 2)."""
    room = numbers.new_tensor([layout.height - size[0] + 1, layout.width - size[1] + 1])
    top, left = (numbers * room).long().unbind(1)
    return top[:, None, None, None], left[:, None, None, None]


def offsets(corner: tuple[Tensor, Tensor], layout: Layout) -> tuple[Tensor, Tensor]:
    """Return how far each position lies below and right of it, (n, 1, H, 1) and (n, 1, 1, W)."""
    device = corner[0].device
    down = torch.arange(layout.height, device=device)[:, None] - corner[0]
    right = torch.arange(layout.width, device=device)[None] - corner[1]
    return down, right


def within(places: tuple[Tensor, Tensor], size: tuple[int, int]) -> Tensor:
    """Return which positions lie in the window, (n, 1, H, W) bool, from their `offsets`."""
    down, right = places
    return (down >= 0) & (down < size[0]) & (right >= 0) & (right < size[1])
