"""Choose paths: run the branches of a fork that are open, or one of two subtrees."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from robustdyn.decision import Decision, Exit, Share
from robustdyn.execution import is_sparse
from robustdyn.kernels import gather_rows, scatter_rows
from robustdyn.primitives.layout import zeros_for
from robustdyn.trace import is_tracing, mark_sparse, open_regions, record_exit, region


def run_paths(
    gate: Decision,
    paths: Sequence[Callable[[Tensor], Tensor]],
    x: Tensor,
    weights: Tensor | None = None,
) -> list[Tensor]:
    """Return keep * weight * path(x) of every path, each (B, ...): zero where the path is closed.

    Each path has a region of its own, so paths may differ in cost, and any number may be open.

    Args:
        gate: a decision with margin (B, P).
        paths: P functions, sample by sample, from (n, ...) to (n, ...).
        x: (B, ...).
        weights: (B, P) that scale what the paths return; by default 1.
    """
    found = []
    for p, path in enumerate(paths):
        one = gate.select(1, p)
        scale = one.keep if weights is None else one.keep * weights[:, p]
        if is_sparse():
            mark_sparse()
            rows = one.kept.nonzero().flatten()
            y = path(gather_rows(x, rows))  # of no samples, it still tells the shape
            y = _per_sample(gather_rows(scale, rows), y) * y
            found.append(scatter_rows(y, rows, zeros_for(y, len(x))))
        else:
            with region(one.share()):
                y = path(x)
            found.append(_per_sample(scale, y) * y)
    return found


def any_open(gate: Decision) -> Decision:
    """Return the union of a fork's paths: open where any of them is; margin and keep (B,).

    What all paths of a fork need runs in its share: the soft one is the chance that any path is
    open. It is no decision of its own, so no trace learns of it.

    Args:
        gate: a decision with margin (B, P).
    """
    closed = F.softplus(gate.margin).sum(1)  # -log of the chance that none is
    closed = closed.clamp(min=torch.finfo(closed.dtype).tiny)
    margin = closed + torch.log(-torch.expm1(-closed))
    return Decision(f"any of {gate.name}", gate.kind, margin, 1 - (1 - gate.keep).prod(1))


def either(
    gate: Decision,
    kept: Callable[[Tensor], Tensor],
    other: Callable[[Tensor], Tensor],
    x: Tensor,
) -> Tensor:
    """Return kept(x) for the samples that `gate` keeps and other(x) for the rest: a tree's node.

    The two exclude each other, so the reachable maximum counts `kept` alone: it must be the one
    that can cost more.

    Args:
        gate: a decision with margin (B,).
        kept, other: map (n, ...) to (n, ...) of one shape, sample by sample.
        x: (B, ...).
    """
    if is_sparse():
        return _one_of_two(gate, kept, other, x)
    with region(gate.share()):
        y = kept(x)
    with region(_complement(gate)):
        z = other(x)
    keep = _per_sample(gate.keep, y)
    return keep * y + (1 - keep) * z


def _complement(gate: Decision) -> Share:
    return Share(lambda: (~gate.kept).double(), lambda: torch.sigmoid(-gate.margin), 0.0)


def _one_of_two(
    gate: Decision,
    kept: Callable[[Tensor], Tensor],
    other: Callable[[Tensor], Tensor],
    x: Tensor,
) -> Tensor:
    mark_sparse()
    out = None
    for on, path in ((gate.kept, kept), (~gate.kept, other)):
        rows = on.nonzero().flatten()
        if not len(rows):
            continue
        y = path(gather_rows(x, rows))
        out = scatter_rows(y, rows, zeros_for(y, len(x)) if out is None else out)
    if out is None:
        raise ValueError("either needs at least one sample")
    return out


def leaf(name: str, logits: Tensor) -> Tensor:
    """Return `logits` (B, K) unchanged, and let the trace know that a sample may end here.

    The chance of ending here is the product of the shares in force, those of the path from the
    root.
    """
    if is_tracing() and not is_sparse():
        stop, taken = torch.ones_like(logits[:, 0]), torch.ones_like(logits[:, 0]) > 0
        for share in open_regions():
            stop, taken = stop * share.soft, taken & (share.hard > 0.5)
        record_exit(Exit(name, logits, stop, taken))
    return logits


def _per_sample(scale: Tensor, like: Tensor) -> Tensor:
    return scale.reshape(-1, *[1] * (like.dim() - 1))
