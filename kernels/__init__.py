"""Masked kernels: the operations of sparse execution.

Every kernel has a torch reference and a list of implementations; the dispatcher runs the first
implementation that supports the inputs. Masks are (B, H, W) or (B,) bool; layout is NHWC. Each
kernel is an operator too, torch.ops.robustdyn.NAME.
"""

if __name__ != "robustdyn.kernels":
    raise ImportError(
        "This folder is the package robustdyn.kernels: `import robustdyn.kernels`, not `kernels`."
    )

from robustdyn.kernels import (  # noqa: F401  (they register)
    chunked,
    cpp_channels,
    cpp_conv,
    cpp_linear,
    cpp_more,
    cpp_recurrent,
    cpp_thin,
    cpp_whole,
    cuda,
)
from robustdyn.kernels.affine import masked_affine_act
from robustdyn.kernels.channel_conv import channel_masked_conv2d
from robustdyn.kernels.compaction import Active, mask_compact
from robustdyn.kernels.conv_gradient import masked_conv2d_input_grad
from robustdyn.kernels.depthwise import masked_depthwise_conv2d
from robustdyn.kernels.dilation import mask_dilate
from robustdyn.kernels.dispatch import KERNELS, Implementation, Kernel, get_kernel, recording
from robustdyn.kernels.entry_conv import entry_masked_conv2d
from robustdyn.kernels.experts import Routes, combine_experts, grouped_matmul, route_experts
from robustdyn.kernels.linear import masked_linear
from robustdyn.kernels.masked_conv import masked_conv2d
from robustdyn.kernels.recurrent import masked_rnn_step
from robustdyn.kernels.rows import gather_rows, scatter_rows
from robustdyn.kernels.thin_conv import thin_conv2d
from robustdyn.kernels.tokens import gather_tokens, scatter_tokens

__all__ = [
    "KERNELS",
    "Active",
    "Implementation",
    "Kernel",
    "Routes",
    "channel_masked_conv2d",
    "combine_experts",
    "entry_masked_conv2d",
    "gather_rows",
    "gather_tokens",
    "get_kernel",
    "grouped_matmul",
    "mask_compact",
    "mask_dilate",
    "masked_affine_act",
    "masked_conv2d",
    "masked_conv2d_input_grad",
    "masked_depthwise_conv2d",
    "masked_linear",
    "masked_rnn_step",
    "recording",
    "route_experts",
    "scatter_rows",
    "scatter_tokens",
    "thin_conv2d",
]
