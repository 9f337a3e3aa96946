"""What the flags need to know of a model and an attack; see robustdyn.checks."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustdyn.gates import estimator
from robustdyn.trace import trace

SAME_LOGITS = 1e-4  # of normalised logits in two passes, as AutoAttack's check of random models


def diagnose(
    model: nn.Module, x: Tensor, y: Tensor, *, seen: Tensor, macs: Tensor
) -> dict[str, list[bool | None]]:
    """Return the columns gate_gradient, loss_gradient and repeatable of clean inputs, each (B,).

    gate_gradient: whether the expected MACs have a gradient in the input; None where the model has
    no gates. loss_gradient: whether the cross-entropy has one. repeatable: whether a second pass
    gave the same answer, MACs and logits.

    Args:
        seen: (B, K) the logits of an earlier pass over x.
        macs: (B,) the MACs of that pass.
    """
    again, macs_again = _forward(model, x)
    with torch.enable_grad(), estimator("straight_through"), trace() as passed:
        leaf = x.detach().requires_grad_()
        logits = model(leaf)
    share = passed.expected_macs() / passed.max_macs()
    loss = F.cross_entropy(logits, y, reduction="none")
    gates: list[bool | None] = [None] * len(x)
    return {
        "gate_gradient": _has_gradient(share, leaf) if passed.decisions else gates,
        "loss_gradient": _has_gradient(loss, leaf),
        "repeatable": (_same(seen, again) & (macs == macs_again)).tolist(),
    }


@torch.no_grad()
def _forward(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    with estimator("straight_through"), trace() as passed:
        logits = model(x)
    return logits, passed.macs()


def _same(logits: Tensor, again: Tensor) -> Tensor:
    size = logits.abs().amax(1).clamp(min=torch.finfo(logits.dtype).tiny)
    near = (logits - again).abs().amax(1) / size <= SAME_LOGITS
    return near & (logits.argmax(1) == again.argmax(1))


def _has_gradient(value: Tensor, x: Tensor) -> list[bool | None]:
    """Whether each value (B,) has a gradient other than 0 in its own input x (B, ...).

    A backward pass that fails (foreign code overwrites in place what it needs) gives none.
    """
    if not value.requires_grad:
        return [False] * len(x)
    try:
        (gradient,) = torch.autograd.grad(value.sum(), x, retain_graph=True, allow_unused=True)
    except RuntimeError:
        return [False] * len(x)
    return [False] * len(x) if gradient is None else (gradient != 0).flatten(1).any(1).tolist()


@contextmanager
def gradients_asked(model: nn.Module) -> Iterator[list[bool]]:
    """Collect, for every pass of the model made inside, whether it was for a gradient in x."""
    asked: list[bool] = []

    def see(_: nn.Module, args: tuple[Any, ...]) -> None:
        asked.append(
            torch.is_grad_enabled() and isinstance(args[0], Tensor) and args[0].requires_grad
        )

    hook = model.register_forward_pre_hook(see)
    try:
        yield asked
    finally:
        hook.remove()
