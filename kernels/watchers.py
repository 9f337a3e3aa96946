"""Whether anyone would notice that a kernel runs as an operator of torch."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

_PLAIN = (Tensor, nn.Parameter)


def unwatched(arguments: Iterable[Any]) -> bool:
    """Return whether a call is outside of gradients, counters, compilers, tracers and profilers.

    Then torch's dispatcher, some 10 microseconds for an operator written in Python, has no part.
    """
    return (
        not torch.compiler.is_compiling()
        and not torch.is_grad_enabled()
        and not torch._C._len_torch_dispatch_stack()
        and not torch._C._len_torch_function_stack()
        and torch._C._functorch.maybe_current_level() is None
        and torch._C._get_tracing_state() is None
        and not torch.autograd._profiler_enabled()
        and all(map(_plain, arguments))
    )


def _plain(argument: Any) -> bool:
    """Return whether it is no tensor of a subclass, and none without data."""
    if isinstance(argument, Tensor):
        return type(argument) in _PLAIN and not argument.is_meta
    return not isinstance(argument, list | tuple) or all(map(_plain, argument))
