"""Linear layer of the kept outputs in C++."""

import ctypes

from torch import Tensor
from torch.nn import functional as F

from robustdyn.kernels.cpp_conv import density_reasons, library, tensor_reasons
from robustdyn.kernels.dispatch import Implementation
from robustdyn.kernels.linear import masked_linear
from robustdyn.kernels.masks import block_size
from robustdyn.kernels.native import integers, plain, pointer, pointers, threads
from robustdyn.kernels.packing import packed
from robustdyn.kernels.shapes import check_shape

CROSSOVER = 0.75  # with more outputs kept, torch's product is faster
ALIASED, APART = 256, 16  # rows a multiple of so many floats apart share few places of the cache
MOST_LANES = 8  # of a vector, as in cpp/linear.h


class LinearCall(ctypes.Structure):
    """The struct Linear of cpp/tables.h."""

    _fields_ = [
        *pointers("x", "weight", "kept", "bias", "out"),
        *integers("batch", "depth", "outputs", "blocks", "x_step", "threads"),
    ]


def _reasons(
    x: Tensor,
    weight: Tensor,
    inputs: Tensor | None = None,
    outputs: Tensor | None = None,
    bias: Tensor | None = None,
) -> list[str]:
    if outputs is None:
        return ["all outputs are kept: dense is faster"]
    return tensor_reasons(x, weight, outputs, bias) or density_reasons(outputs, CROSSOVER)


def _linear(
    x: Tensor,
    weight: Tensor,
    inputs: Tensor | None,
    kept: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    ready = packed(weight, "linear", min(library().width, MOST_LANES), _in_vectors)
    outputs, depth = weight.shape
    block_size(kept, outputs)
    check_shape("x", x, len(kept), depth)
    check_shape("the bias", bias, outputs)
    y = x.new_empty(len(x), outputs)
    x = F.pad(x, (0, APART)) if depth % ALIASED == 0 else x.contiguous()
    arguments = (x, ready, plain(kept), plain(bias), y)
    sizes = (len(x), depth, outputs, kept.shape[1], x.shape[1])
    library().call("linear", LinearCall(*[pointer(a) for a in arguments], *sizes, threads()))
    return y


def _in_vectors(weight: Tensor, width: int) -> Tensor:
    """For each vector of outputs, padded with 0: [depth][vector]."""
    padded = F.pad(weight, (0, 0, 0, -len(weight) % width))
    return padded.unflatten(0, (-1, width)).transpose(1, 2).contiguous()


masked_linear.implementations.append(Implementation("cpp", _linear, _reasons))
