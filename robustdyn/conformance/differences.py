"""Where two passes over the same input part: the first module whose outputs differ."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from robustdyn.adapters import Adapted

RTOL, ATOL = 1e-3, 1e-4  # float32 sums in another order stay far below


def same(first: Tensor, second: Tensor) -> bool:
    """Return whether two tensors agree, up to the order of sums."""
    if first.dtype == torch.bool or not first.is_floating_point():
        return torch.equal(first, second)
    return torch.allclose(first, second, rtol=RTOL, atol=ATOL, equal_nan=True)


def first_difference(
    model: nn.Module,
    first: Callable[[], object],
    second: Callable[[], object],
    compare: Callable[[Tensor, Tensor], bool] = same,
) -> str:
    """Return the first module whose outputs differ between two passes, "" if there is none.

    Modules are taken in the order in which they return, so the innermost comes first. The names
    are those inside the adapted module, if the model is one.
    """
    model = model.module if isinstance(model, Adapted) else model
    one, other = _outputs(model, first), _outputs(model, second)
    for (name, mine), (again, theirs) in zip(one, other, strict=False):
        if name != again:  # the passes took different ways from here on
            return name
        for a, b in zip(mine, theirs, strict=False):
            if not compare(a, b):
                return name
    return ""


def _outputs(model: nn.Module, run: Callable[[], object]) -> list[tuple[str, list[Tensor]]]:
    seen: list[tuple[str, list[Tensor]]] = []

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple, output: Any) -> None:
            seen.append((name, [part.detach().clone() for part in tensors(output)]))

        return hook

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            called = name or f"{type(module).__name__}.forward"
            hooks.enter_context(module.register_forward_hook(note(called)))
        run()
    return seen


def tensors(value: Any) -> list[Tensor]:
    """Return the tensors in a value: itself, or those in its tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [part for entry in value for part in tensors(entry)]
    return []
