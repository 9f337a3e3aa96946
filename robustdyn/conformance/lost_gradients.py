"""Where the gradient of a tensor ends on its way back to the input.

Every operation on what derives from the input is watched. Where a result no longer requires a
gradient though an operand did, the gradient ends (detach, .data, a comparison, an integer); where
the operation is flat (rounding, the sign, an assignment in place), it goes on, but is zero.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

_FLAT = frozenset(
    {"round", "floor", "ceil", "trunc", "fix", "sign", "sgn", "heaviside", "floor_divide"}
)
_OVERWRITING = frozenset(
    {"__setitem__", "masked_fill_", "fill_", "zero_", "copy_", "index_fill_", "masked_fill"}
)
_LEAVING = frozenset({"item", "tolist", "numpy", "__bool__", "__int__", "__float__", "__index__"})


class Loss(NamedTuple):
    """An operation at which a gradient ends or becomes zero, and the module it is in."""

    operation: str
    module: str

    def __str__(self) -> str:
        return f"{self.operation} in {self.module}" if self.module else self.operation


class GradientWatch(TorchFunctionMode):
    """A context in which the gradient of what derives from `x` is followed."""

    def __init__(self, model: nn.Module, x: Tensor):
        super().__init__()
        self._names = {id(module): name for name, module in model.named_modules()}
        self._inside: list[str] = []
        self._alive: list[Tensor] = [x]  # so that no id is given to another tensor
        self._losses: dict[int, Loss | None] = {id(x): None}  # of what derives from x
        self._left: Loss | None = None

    def loss(self, tensor: Tensor) -> Loss:
        """Return where the gradient of a tensor ended, or the likeliest place."""
        loss = self._losses.get(id(tensor))
        if loss is not None:
            return loss
        if id(tensor) in self._losses:
            return Loss("saturation", "")
        return self._left or Loss("a constant: it does not derive from the input", "")

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Follow the gradient inside, and the module that runs."""

        def enter(module: nn.Module, args: tuple) -> None:
            if id(module) in self._names:
                self._inside.append(self._names[id(module)])

        def leave(module: nn.Module, args: tuple, output: Any) -> None:
            if id(module) in self._names:
                self._inside.pop()

        with (
            nn.modules.module.register_module_forward_pre_hook(enter),
            nn.modules.module.register_module_forward_hook(leave, always_call=True),
            self,
        ):
            yield

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        operands = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        derived = [t for t in operands if self._derives(t)]
        needed = [t.requires_grad for t in derived]  # before it is changed in place
        out = func(*args, **kwargs)
        if derived:
            self._follow(_name(func), derived, needed, out, args)
        return out

    def _derives(self, tensor: Tensor) -> bool:
        if id(tensor) not in self._losses and tensor.requires_grad and tensor.grad_fn is not None:
            self._note(tensor, None)  # from an autograd.Function, which is not seen here
        return id(tensor) in self._losses

    def _follow(
        self, name: str, derived: list[Tensor], needed: list[bool], out: Any, args: tuple
    ) -> None:
        results = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        here = Loss(_described(name, results), self._inside[-1] if self._inside else "")
        if name in _LEAVING and not results:
            self._left = here
        if name in _OVERWRITING:
            self._note(args[0], here)
            results = [t for t in results if t is not args[0]]
        losses = [self._losses[id(t)] for t in derived]
        for result in results:
            if not result.requires_grad:
                earlier = next((loss for loss in losses if loss is not None), None)
                self._note(result, here if any(needed) else earlier or here)
            elif name in _FLAT:
                self._note(result, here)
            else:
                alive = [x for x, need in zip(losses, needed, strict=True) if need]
                good = not alive or any(loss is None for loss in alive)
                self._note(result, None if good else alive[0])

    def _note(self, tensor: Tensor, loss: Loss | None) -> None:
        self._alive.append(tensor)
        self._losses[id(tensor)] = loss


def _name(func: Any) -> str:
    name = getattr(func, "__name__", str(func))
    if name == "__get__":  # a property of the tensor
        return f".{getattr(func.__self__, '__name__', 'property')}"
    return name


def _described(name: str, results: list[Tensor]) -> str:
    if name in ("detach", "detach_"):
        return "detach()"
    if name == ".data":
        return ".data"
    if name in _LEAVING:
        return f".{name}(), which leaves torch,"
    if name in _OVERWRITING:
        return "an assignment in place"
    short = name.strip("_")
    if any(result.dtype == torch.bool for result in results):
        return f"the comparison {short}, a bool,"
    if results and not any(r.is_floating_point() or r.is_complex() for r in results):
        return f"{short}, an int,"
    if results and not torch.is_grad_enabled():
        return f"torch.no_grad() around {short}"
    return short
