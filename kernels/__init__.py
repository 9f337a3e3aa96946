"""Masked kernels: the operations of sparse execution.

Every kernel has a torch reference and a list of implementations; the dispatcher runs the first
implementation that supports the inputs. Masks are (B, H, W) or (B,) bool; layout is NHWC.
"""

if __name__ != "robustdyn.kernels":
    raise ImportError(
        "This folder is the package robustdyn.kernels: `import robustdyn.kernels`, not `kernels`."
    )

from robustdyn.kernels.dispatch import KERNELS, Implementation, Kernel, get_kernel
from robustdyn.kernels.masked_conv import masked_conv2d_rows
from robustdyn.kernels.rows import gather_rows, scatter_rows

__all__ = [
    "KERNELS",
    "Implementation",
    "Kernel",
    "gather_rows",
    "get_kernel",
    "masked_conv2d_rows",
    "scatter_rows",
]
