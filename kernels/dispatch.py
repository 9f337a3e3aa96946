"""The dispatcher: kernels that say why they cannot run.

After xformers' fmha: each implementation returns the reasons why it does not support the inputs,
and the first in order of priority without a reason runs.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from robustdyn.kernels.watchers import unwatched


@dataclass(frozen=True)
class Implementation:
    """One way to run a kernel.

    Attributes:
        name: such as "torch", "cpp", "cuda".
        run: same arguments and result as the kernel's reference.
        not_supported_reasons: called with the same arguments; an empty list means it can run.
        device: the only one it runs on, such as "cuda", if it has one.
    """

    name: str
    run: Callable[..., Any]
    not_supported_reasons: Callable[..., list[str]]
    device: str | None = None


# How often each (kernel, implementation) ran, for whoever records at the moment.
Runs = Counter[tuple[str, str]]
_recorders: ContextVar[tuple[Runs, ...]] = ContextVar("robustdyn_kernel_runs", default=())


@contextmanager
def recording() -> Iterator[Runs]:
    """Count into the yielded counter which implementation runs for which kernel."""
    runs: Runs = Counter()
    token = _recorders.set((*_recorders.get(), runs))
    try:
        yield runs
    finally:
        _recorders.reset(token)


@dataclass
class Kernel:
    """An operation with a torch reference and its implementations, best first.

    The reference comes last and supports everything it is defined for.

    Attributes:
        operator: the operation as torch knows it, which ends in `run`. Where nobody would notice,
            or it is None, `run` itself is called.
    """

    name: str
    reference: Callable[..., Any]
    implementations: list[Implementation] = field(default_factory=list)
    operator: Callable[..., Any] | None = None

    def select(self, *args: Any, **kwargs: Any) -> Implementation:
        """Return the implementation that a call with these arguments runs."""
        for implementation in self.implementations:
            device = implementation.device
            if device and (args[0].is_cpu or args[0].device.type != device):
                continue
            if not implementation.not_supported_reasons(*args, **kwargs):
                return implementation
        return self._plain

    @cached_property
    def _plain(self) -> Implementation:
        return Implementation("torch", self.reference, lambda *_, **__: [])

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Run the implementation that supports these arguments, and record which it is."""
        chosen = self.select(*args, **kwargs)
        for runs in _recorders.get():
            runs[self.name, chosen.name] += 1
        return chosen.run(*args, **kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.operator is None or unwatched((*args, *kwargs.values())):
            return self.run(*args, **kwargs)
        return self.operator(*args, **kwargs)


KERNELS: dict[str, Kernel] = {}


def kernel(reference: Callable[..., Any]) -> Kernel:
    """Register a torch reference as a kernel under its own name."""
    if reference.__name__ in KERNELS:
        raise ValueError(f"kernel {reference.__name__!r} is registered twice")
    made = KERNELS[reference.__name__] = Kernel(reference.__name__, reference)
    made.__doc__ = reference.__doc__
    return made


def get_kernel(name: str) -> Kernel:
    """Return the kernel of that name; KeyError if there is none."""
    return KERNELS[name]
