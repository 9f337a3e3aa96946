"""Foreign code that moves itself to a GPU, on a machine without one."""

from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class without_cuda(TorchFunctionMode):
    """A context in which `.cuda()`, `.to("cuda")` and device="cuda" stay on the CPU.

    For foreign code that moves itself to a GPU in its constructor or its forward pass.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.cuda:
            return args[0]
        if _is_cuda(kwargs.get("device")):
            kwargs["device"] = "cpu"
        if func is torch.Tensor.to:
            args = tuple("cpu" if _is_cuda(arg) else arg for arg in args)
        return func(*args, **kwargs)


def _is_cuda(device: Any) -> bool:
    return isinstance(device, str | torch.device) and str(device).startswith("cuda")
