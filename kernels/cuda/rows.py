"""Rows and tokens gathered and scattered on the GPU."""

from math import prod
from typing import Any

import torch
from torch import Tensor

from robustdyn.kernels import rows, tokens
from robustdyn.kernels.cuda.launch import launch
from robustdyn.kernels.cuda.support import FLOATS, aligned, not_on_cuda, register, row_grid

_UNROLL = 4  # as in rows.cu


def gather_rows(x: Tensor, rows: Tensor) -> Tensor:
    """Return x[rows], (n, ...)."""
    x = x.contiguous()
    y = x.new_empty(rows.shape[0], *x.shape[1:])
    _move("gather", x, rows, y, x.shape[1:])
    return y


def scatter_rows(
    y: Tensor, rows: Tensor, out: Tensor, *, add: bool = False, in_place: bool = False
) -> Tensor:
    """Return out, or a copy of it, with out[rows] replaced by y or increased by it."""
    target = out if in_place and out.is_contiguous() else out.clone(memory_format=_DENSE)
    if add:
        _add(y.contiguous(), rows, target)
    else:
        _move("scatter", y.contiguous(), rows, target, out.shape[1:])
    return out.copy_(target) if in_place and target is not out else target


def gather_tokens(x: Tensor, keep: Tensor) -> Tensor:
    """Return x[b, keep[b]], (B, K, D)."""
    x = x.contiguous()
    y = x.new_empty(*keep.shape, x.shape[2])
    _move("gather", x, keep, y, x.shape[2:], x.shape[1])
    return y


def scatter_tokens(y: Tensor, keep: Tensor, out: Tensor) -> Tensor:
    """Return a copy of out (B, N, D) in which out[b, keep[b]] is y[b]."""
    target = out.clone(memory_format=_DENSE)
    _move("scatter", y.contiguous(), keep, target, out.shape[2:], out.shape[1])
    return target


_DENSE = torch.contiguous_format


def _move(
    way: str, source: Tensor, index: Tensor, to: Tensor, row: torch.Size, group_rows: int = 0
) -> None:
    """Move the rows of shape `row` that index names; with groups, index (B, K) counts in each."""
    bytes_ = prod(row) * source.element_size()
    both = aligned(source, to)
    word = 16 if both and bytes_ % 16 == 0 else 4 if both and bytes_ % 4 == 0 else 1
    count, words = index.numel(), bytes_ // word
    if not count or not words:
        return
    blocks, threads = row_grid(count, words, _UNROLL)
    per_group = index.shape[1] if index.dim() == 2 else count
    launch(
        "rows", f"{way}_{word}", blocks, threads,
        source, index.contiguous(), to, count, words, per_group, group_rows,
    )  # fmt: skip


def _add(source: Tensor, index: Tensor, to: Tensor) -> None:
    count, numbers = index.numel(), prod(to.shape[1:])
    if not count or not numbers:
        return
    vector = 16 // source.element_size()
    wide = aligned(source, to) and numbers % vector == 0
    name = "add_f32" if source.dtype == torch.float32 else "add_bf16"
    blocks, threads = row_grid(count, numbers // vector if wide else numbers, _UNROLL)
    kernel = name if wide else f"{name}_any"
    launch("rows", kernel, blocks, threads, source, index.contiguous(), to, count, numbers)


def _index_reasons(index: Tensor, *tensors: Tensor) -> list[str]:
    reasons = not_on_cuda(*tensors, dtypes=None)
    if not reasons and (index.dtype != torch.int64 or not index.is_cuda):
        reasons.append("the indices are not int64 on the GPU")
    return reasons


def _gather_reasons(x: Tensor, index: Tensor) -> list[str]:
    return _index_reasons(index, x)


def _scatter_reasons(
    y: Tensor, index: Tensor, out: Tensor, *, add: bool = False, **_: Any
) -> list[str]:
    reasons = _index_reasons(index, y, out)
    if add and y.dtype not in FLOATS:
        reasons.append(f"there is no kernel that adds {y.dtype}")
    return reasons


register(rows.gather_rows, gather_rows, _gather_reasons)
register(rows.scatter_rows, scatter_rows, _scatter_reasons)
register(tokens.gather_tokens, gather_tokens, _gather_reasons)
register(tokens.scatter_tokens, scatter_tokens, _scatter_reasons)
