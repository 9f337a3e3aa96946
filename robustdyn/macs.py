"""Counts multiply-accumulates (MACs) by watching the operations that run.

One MAC is one multiply-accumulate of a convolution or a matrix product; everything else costs 0.
Formulas are torch's own (`torch.utils.flop_counter.flop_registry`, which counts 2 per MAC), plus
those that it lacks: fused recurrences, fused attention on CPU, and the fast path of
`nn.MultiheadAttention` and `nn.TransformerEncoderLayer`.
"""

import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from robustdyn.errors import UserError

Formula = Callable[..., int]

_aten = torch.ops.aten
_FREE = object()  # no multiply-accumulates
_COMPOSITE = object()  # made of other operations, which are counted instead

# What an operation that multiplies and accumulates is called in ATen.
_ARITHMETIC = re.compile(
    r"conv|mm|matmul|(^|_)(mv|dot|ger|outer|addr|vdot|inner)($|_)|attention|linear|einsum"
    r"|lstm|gru|rnn|transformer_encoder|trilinear|cdist|linalg_multi"
)
# Named like arithmetic, but elementwise, or only asking for or preparing something.
_NAMED_LIKE_ARITHMETIC = re.compile(
    r"upsample_|_thnn_fused_(lstm|gru)_cell|_fused_sdp_choice|_backward|grid_sampler|comm"
    r"|reorder|_prepack|linear_quantize|use_cudnn|_flatten_weight"
)
_KNOWN_NAMESPACES = frozenset({"aten", "prim", "prims", "profiler", "c10d", "_c10d_functional"})


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(value.shape)


def _rnn_layer(x, weight_ih, weight_hh, *_, **__) -> int:
    return prod(_shape(x)[:-1]) * (weight_ih.numel() + weight_hh.numel())


def _rnn_layers(x, weights, *_, **__) -> int:
    return prod(_shape(x)[:-1]) * sum(w.numel() for w in weights if w.dim() == 2)


def _attention(query, key, value, *_, **__) -> int:
    *batch, length, dim = _shape(query)
    return prod(batch) * length * key.shape[-2] * (dim + value.shape[-1])


def _native_attention(query, key, value, embed_dim, num_heads, qkv_weight, *_, **__) -> int:
    batch, length, dim = _shape(query)
    keys = key.shape[1]
    project = dim * dim * (2 * length + 2 * keys)  # query and output; key and value
    return batch * (project + 2 * length * keys * embed_dim)


def _encoder_layer(src, embed_dim, *args, **__) -> int:
    batch, length, dim = _shape(src)
    # num_heads, qkv (w, b), proj (w, b), gelu, norm_first, eps, norm1 (w, b), norm2 (w, b), ffn1_w
    hidden = args[12].shape[0]
    return batch * length * (4 * dim * dim + 2 * dim * hidden) + 2 * batch * length**2 * embed_dim


def _matrix_vector(matrix, vector, *_, **__) -> int:
    return matrix.numel()


def _added_matrix_vector(_bias, matrix, vector, **__) -> int:
    return matrix.numel()


def _vector_product(a, b, *_, **__) -> int:
    return a.numel()


def _added_product(_bias, a, b, **__) -> int:
    return a.numel() * b.shape[-1]


def _outer(a, b, *_, **__) -> int:
    return a.numel() * b.numel()


def _added_outer(_bias, a, b, **__) -> int:
    return a.numel() * b.numel()


_FORMULAS: dict[Any, Formula] = {
    _aten.mkldnn_rnn_layer: _rnn_layer,
    _aten._cudnn_rnn: _rnn_layers,
    _aten.miopen_rnn: _rnn_layers,
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    _aten._native_multi_head_attention: _native_attention,
    _aten._transformer_encoder_layer_fwd: _encoder_layer,
    _aten.mv: _matrix_vector,
    _aten.addmv: _added_matrix_vector,
    _aten.dot: _vector_product,
    _aten.vdot: _vector_product,
    _aten.addmm: _added_product,
    _aten.baddbmm: _added_product,
    _aten.addbmm: _added_product,
    _aten.ger: _outer,
    _aten.addr: _added_outer,
}


def register_macs(op: Any, formula: Formula) -> None:
    """Give a custom operation its MAC formula.

    Args:
        op: an operation packet such as `torch.ops.mylib.my_op`.
        formula: `formula(*args, **kwargs) -> int`, called with the operation's own arguments;
            returns the MACs of the whole call. Return 0 for an operation without arithmetic.
    """
    _FORMULAS[op] = formula
    _rules.clear()


def _halved(flops: Callable[..., int]) -> Formula:
    """Turn torch's FLOP formula into one of MACs.

    Torch wraps its formulas of shapes in a general walk over nested arguments, which costs more
    than the small operations it counts; here only flat arguments become shapes.
    """
    formula = getattr(flops, "__wrapped__", None)
    if formula is None:
        return lambda *args, out_val, **kwargs: flops(*args, out_val=out_val, **kwargs) // 2

    def macs(*args, out_val, **kwargs) -> int:
        shapes = [arg.shape if isinstance(arg, Tensor) else arg for arg in args]
        out_shape = out_val.shape if isinstance(out_val, Tensor) else None
        return formula(*shapes, out_shape=out_shape, **kwargs) // 2

    return macs


_rules: dict[Any, Any] = {}


def _rule(func) -> Any:
    """Return the formula of `func` (arguments and out_val -> MACs), or _FREE, or _COMPOSITE."""
    packet = getattr(func, "overloadpacket", func)
    if packet in _FORMULAS:
        own = _FORMULAS[packet]
        return lambda *args, out_val, **kwargs: own(*args, **kwargs)
    if packet in flop_registry:
        return _halved(flop_registry[packet])
    if func.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd):
        return _COMPOSITE
    name = packet.__name__
    if func.namespace in _KNOWN_NAMESPACES:
        if not _ARITHMETIC.search(name) or _NAMED_LIKE_ARITHMETIC.search(name):
            return _FREE
    raise UserError(
        f"The operation {func.namespace}::{name} has no MAC formula, so its cost cannot be traced.",
        f"Call robustdyn.register_macs(torch.ops.{func.namespace}.{name}, formula) once; "
        "a formula that returns 0 declares it free.",
    )


def formula_of(func: Any) -> Formula | None:
    """Return the formula of an operation, called with its arguments and out_val; None if free.

    Raises:
        UserError: if it does arithmetic and has none.
    """
    rule = _rule(func)
    return None if rule in (_FREE, _COMPOSITE) else rule


def _tensors(args: Iterable[Any]) -> Iterator[Tensor]:
    for arg in args:
        if isinstance(arg, Tensor):
            yield arg
        elif isinstance(arg, list | tuple):
            yield from _tensors(arg)


class _Local(threading.local):
    def __init__(self) -> None:
        self.pauses = 0


_local = _Local()


@contextmanager
def uncounted() -> Iterator[None]:
    """Leave the operations inside out of every count: bookkeeping is not the model's work."""
    _local.pauses += 1
    try:
        yield
    finally:
        _local.pauses -= 1


class MacCounter(TorchDispatchMode):
    """Reports the MACs of every operation to `add(macs, shared)`.

    `shared` is True for work that does not depend on the input (a product of weights): one sample
    alone would cost all of it. Operations of a backward pass are not counted.
    """

    def __init__(self, add: Callable[[int, bool], None]):
        super().__init__()
        self._add = add
        self._constants: set[int] = set()
        self._alive: list[Tensor] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Torch would otherwise import its compiler (seconds) and wrap each call (microseconds).
        return False

    def declare_constants(self, tensors: Iterable[Tensor]) -> None:
        """Name the tensors (parameters, buffers) that are the same for every sample."""
        self._constants.update(t.untyped_storage().data_ptr() for t in tensors)
        self._constants.discard(0)

    def _is_constant(self, tensor: Tensor) -> bool:
        storage = tensor.untyped_storage()
        # An expanded constant (a learned initial state) has one entry per sample: not shared.
        return (
            storage.data_ptr() in self._constants
            and tensor.numel() * tensor.itemsize <= storage.nbytes()
        )

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        rule = _rules.get(func)
        if rule is None:
            rule = _rules[func] = _rule(func)
        if rule is _COMPOSITE:
            with self:  # so that its parts come back here
                return func.decompose(*args, **kwargs)
        out = func(*args, **kwargs)
        if _local.pauses or torch._C._current_graph_task_id() != -1:
            return out
        if rule is not _FREE:
            shared = all(self._is_constant(t) for t in _tensors(args))
            self._add(rule(*args, **kwargs, out_val=out), shared)
            if shared:
                self._remember(out)
        elif args and isinstance(args[0], Tensor) and self._is_constant(args[0]):
            inputs = list(_tensors(args))
            if isinstance(out, Tensor) and all(self._is_constant(t) for t in inputs):
                if out.numel() <= max(t.numel() for t in inputs):
                    self._remember(out)
        return out

    def _remember(self, out: Any) -> None:
        for tensor in _tensors([out]):
            pointer = tensor.untyped_storage().data_ptr()
            if pointer and pointer not in self._constants:
                self._constants.add(pointer)
                self._alive.append(tensor)


def macs_of(run: Callable[[], object]) -> int:
    """Return the MACs of all operations of a call, whatever its batch, in no region."""
    total = 0

    def add(macs: int, shared: bool) -> None:
        nonlocal total
        total += macs

    with MacCounter(add):
        run()
    return total
