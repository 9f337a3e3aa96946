"""Skip a block: run it only for the samples whose gate is open."""

from collections.abc import Callable

from torch import Tensor

from robustdyn.decision import Decision
from robustdyn.execution import is_sparse
from robustdyn.kernels import gather_rows, scatter_rows
from robustdyn.trace import mark_sparse, region


def run_or_bypass(
    gate: Decision, block: Callable[[Tensor], Tensor], x: Tensor, bypass: Tensor
) -> Tensor:
    """Return block(x) for the samples that `gate` keeps and `bypass` for the others.

    SkipNet's form, Wang et al. 2018, arXiv:1711.09485: keep * F(x) + (1 - keep) * bypass.

    Args:
        gate: a decision with margin (B,).
        block: maps (n, ...) to (n, ...), sample by sample.
        x: (B, ...), the block's input.
        bypass: (B, ...), shaped as the block's output.
    """
    if is_sparse():
        rows = _kept_rows(gate)
        return scatter_rows(block(gather_rows(x, rows)), rows, bypass) if len(rows) else bypass
    with region(gate.share()):
        y = block(x)
    keep = _per_sample(gate.keep, y)
    return keep * y + (1 - keep) * bypass


def add_if_kept(
    gate: Decision, branch: Callable[[Tensor], Tensor], x: Tensor, shortcut: Tensor
) -> Tensor:
    """Return shortcut + keep * branch(x).

    ConvNet-AIG's form, Veit and Belongie 2018, arXiv:1711.11503; arguments as `run_or_bypass`.
    """
    if is_sparse():
        rows = _kept_rows(gate)
        if not len(rows):
            return shortcut
        y = gather_rows(shortcut, rows) + branch(gather_rows(x, rows))
        return scatter_rows(y, rows, shortcut)
    with region(gate.share()):
        y = branch(x)
    return shortcut + _per_sample(gate.keep, y) * y


def _kept_rows(gate: Decision) -> Tensor:
    mark_sparse()
    return gate.kept.nonzero().flatten()


def _per_sample(keep: Tensor, like: Tensor) -> Tensor:
    return keep.reshape(-1, *[1] * (like.dim() - 1))
