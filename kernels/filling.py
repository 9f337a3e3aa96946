"""What every masked kernel does with what it computed, and with the positions it left out."""

import torch
from torch import Tensor

FILLS = ("zero", "copy", "leave")


def finish(
    y: Tensor, mask: Tensor, residual: Tensor | None, *, relu: bool, fill: str, out: Tensor | None
) -> Tensor:
    """Return [relu](y + residual) at the mask; elsewhere what `fill` says.

    Args:
        y: (B, H, W, C), computed everywhere.
        mask: (B, H, W) bool.
        residual: (B, H, W, C) or None.
        relu: whether negative results become 0 at the mask.
        fill: "zero" writes 0, "copy" the residual, "leave" nothing: what was in `out` stays, and
            without `out` the values mean nothing.
        out: (B, H, W, C) to write to and return, or None for a new tensor. May be the residual.
    """
    if residual is not None:
        y = y + residual
    if relu:
        y = y.relu()
    unfilled = fill == "leave" and out is None
    if unfilled or (mask.device.type == "cpu" and mask.all()):
        return y.contiguous() if out is None else out.copy_(y)
    others = {"zero": y.new_zeros(()), "copy": residual, "leave": out}
    other = others[fill]
    assert other is not None  # check_fill has seen to it
    y = torch.where(mask[..., None], y, other)
    return y.contiguous() if out is None else out.copy_(y)


def check_fill(fill: str, residual: Tensor | None) -> None:
    """Raise ValueError for an unknown `fill`, or "copy" with nothing to copy."""
    if fill not in FILLS:
        raise ValueError(f"fill must be one of {', '.join(FILLS)}, not {fill!r}")
    if fill == "copy" and residual is None:
        raise ValueError("fill='copy' copies the residual, and there is none")
