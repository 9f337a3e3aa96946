"""Weights in the order in which the kernels read them, remembered while they do not change."""

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

_packed: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def pack(weight: Tensor, groups: int = 1, *, transposed: bool = False) -> Tensor:
    """Return the weight (O, C / groups, kh, kw) as (kh, kw, depth, columns).

    Depth is what is summed over in a group, columns are those of all groups: C / groups and O, or
    transposed O / groups and C. For bf16, two neighbours in depth are neighbours in memory.
    During the capture of a CUDA graph the weight is packed anew, as a part of the graph.
    """
    if weight.is_inference() or (weight.is_cuda and torch.cuda.is_current_stream_capturing()):
        return _arrange(weight, groups, transposed)
    stamp = (weight._version, weight.data_ptr(), groups)
    known = _packed.setdefault(weight, {})
    if known.get(transposed, (None, None))[0] != stamp:
        known[transposed] = (stamp, _arrange(weight, groups, transposed))
    return known[transposed][1]


def _arrange(weight: Tensor, groups: int, transposed: bool) -> Tensor:
    count, depth, height, width = weight.shape
    ways = weight.detach().reshape(groups, count // groups, depth, height, width)
    if not transposed:
        ways = ways.transpose(1, 2)
    # (groups, depth, columns of a group, kh, kw)
    if weight.dtype == torch.float32:
        return ways.permute(3, 4, 1, 0, 2).contiguous()
    pairs = ways.unflatten(1, (-1, 2))
    return pairs.permute(4, 5, 1, 0, 3, 2).contiguous()
