"""Linear layer of the kept outputs in C++."""

import ctypes

from torch import Tensor
from torch.nn import functional as F

from robustdyn.kernels.cpp_conv import density_reasons, library, tensor_reasons
from robustdyn.kernels.dispatch import Implementation
from robustdyn.kernels.filling import where
from robustdyn.kernels.linear import masked_linear
from robustdyn.kernels.native import integers, plain, pointer, pointers, threads
from robustdyn.kernels.packing import packed

CROSSOVER = 0.75  # with more outputs kept, torch's product is faster
MOST_LANES = 8  # of a vector, as in cpp/linear.h


class LinearCall(ctypes.Structure):
    """The struct Linear of cpp/tables.h."""

    _fields_ = [
        *pointers("x", "weight", "kept", "bias", "out"),
        *integers("batch", "depth", "outputs", "threads"),
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
    reasons = tensor_reasons(x, weight, inputs, outputs, bias)
    return reasons or density_reasons(outputs, CROSSOVER)


def _linear(
    x: Tensor,
    weight: Tensor,
    inputs: Tensor | None = None,
    outputs: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    x = (x if inputs is None else where(inputs, x)).contiguous()
    ready = packed(weight, "linear", min(library().width, MOST_LANES), _in_vectors)
    count, depth = weight.shape
    y = x.new_empty(len(x), count)
    arguments = (x, ready, plain(outputs), plain(bias), y)
    call = LinearCall(*[pointer(a) for a in arguments], len(x), depth, count, threads())
    library().call("linear", call)
    return y


def _in_vectors(weight: Tensor, width: int) -> Tensor:
    """For each vector of outputs, padded with 0: [depth][vector]."""
    padded = F.pad(weight, (0, 0, 0, -len(weight) % width))
    return padded.unflatten(0, (-1, width)).transpose(1, 2).contiguous()


masked_linear.implementations.append(Implementation("cpp", _linear, _reasons))
