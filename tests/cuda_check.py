"""A call of a kernel on which its CUDA implementation must do what its reference does."""

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from robustdyn.kernels import KERNELS

EXACT, FLOAT32, TF32, BFLOAT16 = 0.0, 2e-6, 2e-3, 8e-3


@dataclass(frozen=True)
class Case:
    """One call: the error allowed is `tolerance` times the largest result."""

    kernel: str
    label: str
    make: Callable[[], tuple[tuple, dict]]
    tolerance: float = FLOAT32
    tf32: bool = False

    def __str__(self) -> str:
        return f"{self.kernel}: {self.label}"


def cuda_run(case: Case) -> Callable:
    """Return the kernel's CUDA implementation."""
    return next(i.run for i in KERNELS[case.kernel].implementations if i.name == "cuda")


def check(case: Case, device: str = "cpu", run: Callable | None = None) -> None:
    """Compare the CUDA implementation with the reference on the CPU.

    New memory is full of NaN, so that what is not written shows.
    """
    torch.manual_seed(0)
    args, kwargs = case.make()
    expected = reference_of(case, (args, kwargs))
    with strict(case.tf32):
        found = (run or cuda_run(case))(*copied(args, device), **copied(kwargs, device))
    equal(case, found, expected)


def reference_of(case: Case, inputs: tuple[tuple, dict]):
    """Return what the reference says, in float32 where the case is in bfloat16."""
    args, kwargs = (copied(value, upcast=True) for value in inputs)
    return KERNELS[case.kernel].reference(*args, **kwargs)


def equal(case: Case, found, expected) -> None:
    """Raise AssertionError unless both are the same within the case's tolerance."""
    for want, have in zip(_tensors(expected), _tensors(found), strict=True):
        assert have.shape == want.shape
        have = have.cpu()
        if not want.is_floating_point():
            assert have.dtype == want.dtype
            assert torch.equal(have, want)
            continue
        scale = want.nan_to_num().abs().max().item() if want.numel() else 0.0
        torch.testing.assert_close(
            have.float(), want.float(), rtol=0, atol=case.tolerance * scale, equal_nan=True
        )


@contextmanager
def strict(tf32):
    """Fill new memory with NaN, and round to tf32 only if asked to."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def copied(values, device="cpu", upcast=False):
    if isinstance(values, Tensor):
        upcast = upcast and values.dtype == torch.bfloat16
        copy = values.detach().clone().to(device)
        return copy.float() if upcast else copy
    if isinstance(values, dict):
        return {key: copied(value, device, upcast) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return type(values)(copied(value, device, upcast) for value in values)
    return values


def _tensors(values):
    return [values] if isinstance(values, Tensor) else list(values)


def mask_of(kind, *shape):
    """Return a bool mask of that kind."""
    mask = torch.zeros(shape, dtype=torch.bool)
    if kind == "full":
        return ~mask
    if kind == "corners":
        mask[..., 0], mask[..., -1] = True, True
    if kind == "pixel":
        mask.view(-1)[mask.numel() // 2] = True
    if kind == "random":
        mask = torch.rand(shape) < 0.4
    return mask
