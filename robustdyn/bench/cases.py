"""Cases: one kernel on one shape, beside the dense operation that does all the work."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor

from robustdyn.bench.masks import blocky_mask, random_mask
from robustdyn.bench.timing import Call
from robustdyn.errors import UserError, suggest
from robustdyn.kernels import Kernel, recording

ACTIVE = (0.05, 0.10, 0.25, 0.50, 0.75, 1.00)


@dataclass(frozen=True)
class Problem:
    """One case at one active fraction.

    Attributes:
        active: the part of the dense work that is asked for.
        dense: all the work, in plain torch.
        sparse: what is asked for, by the name of the implementation that does it.
        chosen: the implementation that the dispatcher takes; its call goes through the dispatcher.
        ceiling: the best efficiency that memory traffic allows, for work that is bound by it.
    """

    active: float
    dense: Call
    sparse: dict[str, Call]
    chosen: str
    ceiling: float | None = None


@dataclass(frozen=True)
class Draw:
    """What a case may draw from: masks and values of one seed, on one device."""

    device: str
    generator: torch.Generator
    blocky: bool

    def values(self, *shape: int) -> Tensor:
        """Return normal values, float32."""
        return torch.randn(shape, generator=self.generator).to(self.device)

    def mask(self, shape: tuple[int, ...], active: float) -> Tensor:
        """Return a bool mask; blocky ones are (B, H, W)."""
        if self.blocky:
            batch, height, width = shape
            return blocky_mask((batch, height, width), active, self.generator).to(self.device)
        return random_mask(shape, active, self.generator).to(self.device)


@dataclass(frozen=True)
class Case:
    """A kernel on a shape.

    Attributes:
        name: such as "conv 64".
        kernel: the name of the kernel it is about.
        shape: of the input, as text.
        make: (active fraction, draw) -> Problem.
        masks: which masks it knows: "random", "blocky".
    """

    name: str
    kernel: str
    shape: str
    make: Callable[[float, Draw], Problem]
    masks: tuple[str, ...] = ("random",)


def problem(
    kernel: Kernel,
    arguments: Sequence[Any],
    options: dict[str, Any],
    dense: Call,
    active: float,
    *,
    ceiling: float | None = None,
) -> Problem:
    """Return the problem of a kernel's call: all implementations that take these arguments."""
    chosen = kernel.select(*arguments, **options).name
    sparse: dict[str, Call] = {
        i.name: _bound(i.run, arguments, options)
        for i in kernel.implementations
        if i.name != chosen and not i.not_supported_reasons(*arguments, **options)
    }
    sparse["torch"] = _bound(kernel.reference, arguments, options)
    sparse[chosen] = _bound(kernel, arguments, options)
    return Problem(active, dense, sparse, chosen, ceiling)


def composed(kernel: str, call: Call, dense: Call, active: float) -> Problem:
    """Return the problem of a call that uses several kernels, named after what `kernel` runs."""
    with torch.no_grad(), recording() as runs:
        call()
    chosen = next((used for name, used in runs if name == kernel), "torch")
    return Problem(active, dense, {chosen: call}, chosen)


def _bound(run: Callable[..., Any], arguments: Sequence[Any], options: dict[str, Any]) -> Call:
    return lambda: run(*arguments, **options)


def cases() -> list[Case]:
    """Return all cases: convolutions first, then rows of samples, tokens, experts and steps."""
    from robustdyn.bench.conv_cases import CONV_CASES
    from robustdyn.bench.row_cases import ROW_CASES

    return [*CONV_CASES, *ROW_CASES]


def chosen_cases(names: Sequence[str]) -> list[Case]:
    """Return the cases whose name or kernel matches one of the patterns; all if there are none.

    Raises:
        UserError: if a pattern matches no case.
    """
    every = cases()
    for name in names:
        if not any(_fits(case, name) for case in every):
            kernels = [*dict.fromkeys(case.kernel for case in every)]
            raise UserError(
                f"No kernel that is timed is named '{name}'.",
                f"{suggest(name, [*kernels, *(case.name for case in every)])}"
                f"Choose from: {', '.join(kernels)}.",
            )
    return [c for c in every if not names or any(_fits(c, name) for name in names)]


def _fits(case: Case, name: str) -> bool:
    return fnmatchcase(case.name, name) or fnmatchcase(case.kernel, name)
