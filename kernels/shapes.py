"""Shapes of arguments that C++ reads by their addresses: a wrong one would read beyond."""

from torch import Tensor


def check_shape(name: str, tensor: Tensor | None, *expected: int) -> None:
    """Raise ValueError if `tensor` does not have the expected shape; None passes."""
    if tensor is not None and tensor.shape != expected:
        raise ValueError(f"{name} must be {expected}, not {tuple(tensor.shape)}")
