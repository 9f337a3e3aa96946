"""Gradient estimators: how a hard gate (run or skip) passes a gradient.

An estimator maps the margin of a decision to its keep: `estimator(margin) -> keep`, same shape.
Gates decide hard in the forward pass; without an estimator their gradient is zero, and a model
would look robust only because no attack can see through it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial

import torch
from torch import Tensor

from robustdyn.errors import UserError, suggest
from robustdyn.kernels.watchers import unwatched

Estimator = Callable[[Tensor], Tensor]


def straight_through(margin: Tensor) -> Tensor:
    """Return 1 where margin > 0, else 0; backward is that of sigmoid(margin).

    Bengio et al. 2013, arXiv:1308.3432.
    """
    if unwatched((margin,)):
        return torch.gt(margin, 0, out=torch.empty_like(margin))  # floats at once
    hard = (margin > 0).to(margin.dtype)
    if not (torch.is_grad_enabled() and margin.requires_grad):
        return hard
    soft = torch.sigmoid(margin)
    return hard + (soft - soft.detach())


def sigmoid(margin: Tensor, *, slope: float = 1.0) -> Tensor:
    """Return sigmoid(slope * margin): soft forward and backward (LGM, Tao et al. 2022)."""
    return torch.sigmoid(slope * margin)


def gumbel(margin: Tensor, *, tau: float = 1.0, uniform: Estimator | None = None) -> Tensor:
    """Return a Bernoulli(sigmoid(margin)) sample; backward is that of the tempered sigmoid.

    The two-way Gumbel softmax (Jang et al. 2017, arXiv:1611.01144): the difference of two Gumbel
    variables is logistic. Draws from torch's global generator, as in training, or by `uniform`:
    margin -> uniform numbers in [0, 1) of its shape.
    """
    draw = torch.rand_like(margin, dtype=torch.float32) if uniform is None else uniform(margin)
    noisy = margin + torch.logit(draw.clamp(1e-6, 1 - 1e-6)).to(margin.dtype)
    soft = torch.sigmoid(noisy / tau)
    return (noisy > 0).to(margin.dtype) + (soft - soft.detach())


def full(margin: Tensor) -> Tensor:
    """Return 1 everywhere, without a gradient: full inference, whatever the gates say."""
    return torch.ones_like(margin)


ESTIMATORS: dict[str, Callable[..., Tensor]] = {
    "straight_through": straight_through,
    "sigmoid": sigmoid,
    "gumbel": gumbel,
    "full": full,
}
_current: ContextVar[Estimator] = ContextVar("robustdyn_estimator", default=straight_through)


@contextmanager
def estimator(name: str, **params: float) -> Iterator[None]:
    """Let every decision made inside use the named estimator.

    Raises:
        UserError: if there is no estimator of that name.
    """
    if name not in ESTIMATORS:
        raise UserError(
            f"Unknown gradient estimator '{name}'.",
            f"{suggest(name, ESTIMATORS)}Choose one of: {', '.join(ESTIMATORS)}.",
        )
    with using(partial(ESTIMATORS[name], **params) if params else ESTIMATORS[name]):
        yield


@contextmanager
def using(estimator: Estimator) -> Iterator[None]:
    """Let every decision made inside use the given function."""
    token = _current.set(estimator)
    try:
        yield
    finally:
        _current.reset(token)


def in_force() -> Estimator:
    """Return the estimator in force."""
    return _current.get()


def keep_from(margin: Tensor) -> Tensor:
    """Return the keep of `margin` under the estimator in force."""
    return _current.get()(margin)


def forward_is_hard() -> bool:
    """Return True if decisions are made as in deployment: 0 or 1, by the sign of the margin."""
    return _current.get() is straight_through


def random_estimator() -> Callable[..., Tensor] | None:
    """Return the estimator in force if it draws random numbers (it takes `uniform`), else None."""
    current = _current.get()
    return current if getattr(current, "func", current) is gumbel else None
