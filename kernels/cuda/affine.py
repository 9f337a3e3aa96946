"""Scale, shift and activation at the positions of a mask, on the GPU."""

from typing import Any

import torch
from torch import Tensor

from robustdyn.kernels import affine
from robustdyn.kernels.cuda.launch import launch
from robustdyn.kernels.cuda.support import FILL, aligned, not_on_cuda, register, row_grid
from robustdyn.kernels.filling import check_fill


def masked_affine_act(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    mask: Tensor,
    residual: Tensor | None = None,
    *,
    relu: bool = False,
    fill: str = "zero",
    out: Tensor | None = None,
) -> Tensor:
    """Return [relu](scale * x + shift + residual), (B, H, W, C), at the mask."""
    check_fill(fill, residual)
    x, mask = x.contiguous(), mask.contiguous()
    out = torch.empty_like(x) if out is None else out
    scale, shift = scale.float().contiguous(), shift.float().contiguous()
    residual = None if residual is None else residual.contiguous()
    channels = x.shape[3]
    name = "affine_f32" if x.dtype == torch.float32 else "affine_bf16"
    wide = channels % 4 == 0 and aligned(x, scale, shift, residual, out)
    blocks, threads = row_grid(mask.numel(), channels // 4 if wide else channels)
    launch(
        "affine", name if wide else f"{name}_any", blocks, threads,
        x, scale, shift, residual, mask, out, mask.numel(), channels, relu, FILL[fill],
    )  # fmt: skip
    return out


def _reasons(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    mask: Tensor,
    residual: Tensor | None = None,
    *,
    out: Tensor | None = None,
    **_: Any,
) -> list[str]:
    return not_on_cuda(x, residual, out)


register(affine.masked_affine_act, masked_affine_act, _reasons)
