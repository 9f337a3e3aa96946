"""trace(), decide(), region(): what the gates of a model decided, and what that costs.

Compute is a polynomial in the decisions. Every operation stands in a (possibly empty) stack of
regions, so the compute of sample b is

    C(b) = sum over stacks s of macs(s) * product over regions r in s of share_r(b)

where macs(s) is counted by watching the operations (robustdyn.macs) and the shares come from the
decisions: hard from keep, soft from sigmoid(margin). Bit operations, MACs times the bits of both
operands, are a second currency over the same polynomial: see `precision`.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from robustdyn.decision import KINDS, Decision, Deployed, Exit, Share
from robustdyn.gates import forward_is_hard, keep_from
from robustdyn.macs import MacCounter

FULL_BITS = 32  # of a weight or activation whose precision nobody states


@dataclass
class _Bucket:
    """The MACs counted in one stack of regions at one precision.

    `each` grows with the batch, `shared` does not; `bits` is the product of the operands' bits.
    """

    shares: tuple[Share, ...]
    bits: int
    each: int = 0
    shared: int = 0


@dataclass(eq=False)
class Trace:
    """What one forward pass decided and what it costs. Made by `trace()`.

    Attributes:
        decisions: by name, in the order in which they were made.
        exits: in the order of the model; empty without exits.
        activations: of a pass that someone watches (robustdyn.activations), else empty.
        sparse: whether the pass skipped work for real.
    """

    decisions: dict[str, Decision] = field(default_factory=dict)
    exits: list[Exit] = field(default_factory=list)
    activations: list[Tensor] = field(default_factory=list)
    sparse: bool = False
    _buckets: dict[tuple[tuple[int, ...], int], _Bucket] = field(default_factory=dict)
    _batch_size: int | None = None
    _repeated: str | None = None
    _device: torch.device | None = None

    def macs(self) -> Tensor:
        """Return the exact MACs of each sample, (B,) float64: what it would cost alone."""
        return self._hard(self._terms())

    def expected_macs(self) -> Tensor:
        """Return the expected MACs of each sample, (B,), differentiable in the margins."""
        return self._soft(self._terms())

    def max_macs(self) -> float:
        """Return the largest MACs that any sample of this input shape can reach."""
        return _maximum(self._terms())

    def bit_operations(self) -> Tensor:
        """Return MACs x weight bits x activation bits of each sample, exactly, (B,) float64."""
        return self._hard(self._terms(in_bits=True))

    def expected_bit_operations(self) -> Tensor:
        """Return the expected bit operations of each sample, (B,), differentiable."""
        return self._soft(self._terms(in_bits=True))

    def max_bit_operations(self) -> float:
        """Return the largest bit operations that any sample of this input shape can reach."""
        return _maximum(self._terms(in_bits=True))

    def terms(self) -> list[tuple[float, tuple[Share, ...]]]:
        """Return the polynomial: the MACs of each stack of regions, and the shares that scale them.

        Products of shares are taken apart into their factors. One sample's compute is the sum over
        the stacks of the MACs times the product of the shares.
        """
        terms = self._terms()
        return [
            (macs, tuple(f for share in shares for f in share.factors)) for macs, shares in terms
        ]

    def _terms(self, *, in_bits: bool = False) -> list[tuple[float, tuple[Share, ...]]]:
        if self._repeated is not None:
            raise RuntimeError(
                f"Decision '{self._repeated}' was made twice: one trace holds one forward pass."
            )
        if self.sparse:
            raise RuntimeError(
                "MACs are counted in dense execution: trace a pass inside execution('dense')."
            )
        if self._batch_size is None or not self._buckets:
            raise RuntimeError(
                "This trace counted nothing: call the model (an nn.Module) inside `with trace()`, "
                "in the same thread (DataParallel replicas run in others)."
            )
        size = self._batch_size
        return [
            ((b.each / size + b.shared) * (b.bits if in_bits else 1), b.shares)
            for b in self._buckets.values()
        ]

    def _hard(self, terms: list[tuple[float, tuple[Share, ...]]]) -> Tensor:
        hard = [(cost, [share.hard for share in shares]) for cost, shares in terms]
        return self._total(hard, torch.float64)

    def _soft(self, terms: list[tuple[float, tuple[Share, ...]]]) -> Tensor:
        soft = [(cost, [share.soft for share in shares]) for cost, shares in terms]
        dtypes = {share.dtype for _, shares in soft for share in shares}
        return self._total(soft, torch.float64 if torch.float64 in dtypes else torch.float32)

    def _total(self, terms: list[tuple[float, list[Tensor]]], dtype: torch.dtype) -> Tensor:
        guarded = [share for _, shares in terms for share in shares]
        device = guarded[0].device if guarded else self._device
        total = torch.zeros(self._batch_size or 0, dtype=dtype, device=device)
        for macs, shares in terms:
            term = torch.as_tensor(macs, dtype=dtype, device=device)
            for share in shares:
                term = term * share.to(dtype)
            total = total + term
        return total

    def _count(self, stack: tuple[Share, ...], macs: int, shared: bool) -> None:
        key = tuple(map(id, stack)), _local.bits
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = _Bucket(stack, _local.bits)
        if shared:
            bucket.shared += macs
        else:
            bucket.each += macs

    def _see(self, x: Tensor) -> None:
        self._batch_size = x.shape[0] if x.dim() else 1
        self._device = x.device


def _maximum(terms: list[tuple[float, tuple[Share, ...]]]) -> float:
    return float(sum(cost * prod(s.maximum for s in shares) for cost, shares in terms))


@dataclass
class _Recording:
    """An active trace in one thread: its counter, and the regions open when it began."""

    trace: Trace
    counter: MacCounter
    depth: int

    def stack(self) -> tuple[Share, ...]:
        return _local.stack[self.depth :]


class _Local(threading.local):
    def __init__(self) -> None:
        self.recordings: list[_Recording] = []
        self.stack: tuple[Share, ...] = ()
        self.copies = 1
        self.bits = FULL_BITS**2


_local = _Local()
_tracing_threads: dict[int, int] = {}


def _recordings() -> list[_Recording]:
    recordings = _local.recordings
    if not recordings and _tracing_threads:
        raise RuntimeError(
            "A trace is active in another thread, which cannot see this one. Trace in the thread "
            "that runs the model; for DataParallel, trace the bare module instead."
        )
    return recordings


@contextmanager
def trace() -> Iterator[Trace]:
    """Record the decisions and the compute of the forward pass made inside.

        with robustdyn.trace() as trace:
            logits = model(x)
        trace.macs()  # (B,)

    Traces nest; each sees what runs inside it. A backward pass inside is not counted.
    """
    result = Trace()
    thread = threading.get_ident()

    def add(macs: int, shared: bool) -> None:
        result._count(recording.stack(), macs if shared else macs // _local.copies, shared)

    recording = _Recording(result, MacCounter(add), len(_local.stack))

    def first_module(module: nn.Module, args: tuple) -> None:
        if threading.get_ident() != thread:
            return
        hook.remove()
        recording.counter.declare_constants([*module.parameters(), *module.buffers()])
        for arg in args:
            if isinstance(arg, Tensor):
                return result._see(arg)

    hook = register_module_forward_pre_hook(first_module)
    _local.recordings.append(recording)
    _tracing_threads[thread] = _tracing_threads.get(thread, 0) + 1
    try:
        with recording.counter:
            yield result
    finally:
        hook.remove()
        _local.recordings.remove(recording)
        _tracing_threads[thread] -= 1
        if not _tracing_threads[thread]:
            del _tracing_threads[thread]


def decide(name: str, margin: Tensor, *, kind: str) -> Decision:
    """Decide where to run the guarded work: keep = margin > 0.

    Args:
        name: unique within the model, dots between levels.
        margin: (B, ...), positive = run; log-odds wherever there is a probability.
        kind: one of KINDS.

    Raises:
        ValueError: if `kind` is unknown.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}; known kinds: {', '.join(KINDS)}")
    if forward_is_hard() and not torch.is_grad_enabled():
        decision: Decision = Deployed(name, kind, margin)
    else:
        decision = Decision(name, kind, margin, keep_from(margin))
    record_decision(decision)
    return decision


def record_decision(decision: Decision) -> None:
    """Let the active traces know of a decision."""
    for recording in _recordings():
        result = recording.trace
        if decision.name in result.decisions:
            result._repeated = decision.name
        result.decisions.setdefault(decision.name, decision)
        if result._batch_size is None:
            result._see(decision.margin)


def record_exit(exit: Exit) -> None:
    """Let the active traces know of an exit."""
    for recording in _recordings():
        recording.trace.exits.append(exit)


def mark_sparse() -> None:
    """Tell the active traces that this pass skips work, so that its operations are not dense."""
    for recording in _recordings():
        recording.trace.sparse = True


class region:
    """A stretch of forward() whose dense MACs are scaled by a share. Regions nest and multiply."""

    __slots__ = ("_outer", "_share")

    def __init__(self, share: Share):
        self._share = share

    def __enter__(self) -> None:
        self._outer = _local.stack
        if _recordings():
            _local.stack = (*self._outer, self._share)

    def __exit__(self, *_) -> None:
        _local.stack = self._outer


@contextmanager
def precision(*, weights: int, activations: int) -> Iterator[None]:
    """Count the operations inside at so many bits per weight and per activation; else 32 each."""
    before, _local.bits = _local.bits, weights * activations
    try:
        yield
    finally:
        _local.bits = before


def is_tracing() -> bool:
    """Return True if a trace is active in this thread."""
    return bool(_recordings())


def open_regions() -> tuple[Share, ...]:
    """Return the shares of the regions in force, outermost first."""
    return _local.stack


def replace_regions(shares: tuple[Share, ...]) -> None:
    """Put `shares` in force: for hooks, which cannot hold a `region` open from one to the next."""
    _local.stack = shares


def count(macs: int) -> None:
    """Count the MACs of a batch, in the regions in force, of operations that are not watched."""
    for recording in _recordings():
        recording.trace._count(recording.stack(), macs, False)


@contextmanager
def copies(number: int) -> Iterator[None]:
    """Count operations inside for a batch that was repeated `number` times as if it was not."""
    before, _local.copies = _local.copies, number
    try:
        yield
    finally:
        _local.copies = before
