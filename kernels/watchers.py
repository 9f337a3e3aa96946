"""Whether anyone would notice that a kernel runs as an operator of torch."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

# Bound once: after a kernel that filled the caches, a step through a module is a wait for memory.
_is_compiling = torch.compiler.is_compiling
_is_grad_enabled = torch.is_grad_enabled
_dispatch_modes = torch._C._len_torch_dispatch_stack
_function_modes = torch._C._len_torch_function_stack
_transforms = torch._C._functorch.maybe_current_level
_tracing = torch._C._get_tracing_state
_profiling = torch.autograd._profiler_enabled


def unwatched(arguments: Iterable[Any]) -> bool:
    """Return whether a call is outside of gradients, counters, compilers, tracers and profilers.

    Then torch's dispatcher, some 10 microseconds for an operator written in Python, has no part.
    """
    return (
        not _is_compiling()
        and not _is_grad_enabled()
        and not _dispatch_modes()
        and not _function_modes()
        and _transforms() is None
        and _tracing() is None
        and not _profiling()
        and all(map(_plain, arguments))
    )


def _plain(argument: Any) -> bool:
    """Return whether it is no tensor of a subclass, and none without data."""
    if type(argument) is Tensor or type(argument) is nn.Parameter:
        return not argument.is_meta
    if isinstance(argument, list | tuple):
        return all(map(_plain, argument))
    return not isinstance(argument, Tensor)
