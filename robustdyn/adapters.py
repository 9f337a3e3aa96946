"""Adapters: a foreign dynamic network, its source untouched, as a model whose forward() is logits.

    rd.adapt(
        net,                                    # any nn.Module
        call=lambda net, x: net(x, meta={}),    # how it is called, if not net(x)
        watch=["blocks.1.gate"],                # modules whose outputs `read` needs
        read=read,                              # what it left -> logits, deciding on the way
        regions={"blocks.1": "block1"},         # module -> the decision that scales its MACs
    )

A region is bound to its decision by name, after the fact: the decision may be made long after the
module ran, even after the whole pass.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from robustdyn.decision import Decision, Share
from robustdyn.errors import UserError, suggest
from robustdyn.execution import is_sparse
from robustdyn.foreign_pass import LateShare, Watch
from robustdyn.macs import macs_of
from robustdyn.reading import Pass, from_probabilities, log_odds
from robustdyn.trace import copies, count, is_tracing, mark_sparse, region

__all__ = ["Adapted", "Pass", "Region", "adapt", "from_probabilities", "log_odds"]

Gates = Mapping[str, Decision]
Shared = str | Callable[[Gates], Share]


@dataclass(frozen=True)
class Region:
    """What scales the MACs of a module.

    Attributes:
        share: the name of a decision, or a function of all decisions by name, for products
            (`lambda gates: gates["in"].share() * gates["out"].share()`), dilation, powers, maxima.
        row: for a module that the network calls only with the rows that it keeps, or not at all:
            the shape of one row of its input, without the batch. Its MACs are then those of one
            such row, measured once, times the entries of the decision.

    Raises:
        UserError: if there is a row, and the share is not the name of a decision.
    """

    share: Shared
    row: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.row is not None and not isinstance(self.share, str):
            raise UserError(
                "A region with a row needs the name of its decision, not a function.",
                "Decide for each module by itself, with one entry per row, and name that decision.",
            )

    def of(self, gates: Gates) -> Share:
        """Return the share once the decisions are made."""
        if isinstance(self.share, str):
            return _named(gates, self.share).share()
        return self.share(gates)


def _whole_output(seen: Pass) -> Tensor:
    return seen.output


def _plain_call(module: nn.Module, x: Tensor) -> Any:
    return module(x)


class Adapted(nn.Module):
    """A foreign module as a model of ours. Made by `adapt`, which says what the arguments are."""

    def __init__(
        self,
        module: nn.Module,
        read: Callable[[Pass], Tensor],
        call: Callable[[nn.Module, Tensor], Any],
        sparse: Callable[[nn.Module, Tensor], Tensor] | None,
        watch: Sequence[str],
        regions: Mapping[str, Region],
        heads: Sequence[str],
        min_batch: int,
    ):
        super().__init__()
        self.module = module.eval()
        self.read, self.call, self.sparse = read, call, sparse
        self.watch, self.regions, self.heads = tuple(watch), dict(regions), tuple(heads)
        self.min_batch = min_batch
        self.skips_itself = bool(regions) and all(b.row is not None for b in regions.values())
        self.row_macs = {
            name: _macs_of_row(module, name, bound.row)
            for name, bound in self.regions.items()
            if bound.row is not None
        }

    def forward(self, x: Tensor) -> Tensor:
        repeats = ceil(self.min_batch / max(len(x), 1)) if len(x) < self.min_batch else 1
        batch = x.repeat(repeats, *[1] * (x.dim() - 1)) if repeats > 1 else x
        if not is_sparse():
            return self._run(batch, len(x), scaled=is_tracing())
        if self.sparse is None and not self.skips_itself:
            raise UserError(
                "This adapted model has no sparse execution.",
                "Give adapt() a `sparse`: how the module is called so that it skips work.",
            )
        mark_sparse()
        if self.sparse is None:
            return self._run(batch, len(x), scaled=False)
        return self.sparse(self.module, batch)[: len(x)]

    def _run(self, batch: Tensor, samples: int, *, scaled: bool) -> Tensor:
        """Call the module on a batch that repeats `samples` samples, and read what it left."""
        seen = Pass(self.module, None, samples)
        watched = Watch(self.module, self.watch)
        if scaled:
            shares = {name: LateShare(bound.of, seen.gates) for name, bound in self.regions.items()}
            watched.scale(shares, uncounted=set(self.row_macs))
            whole = torch.ones(samples, device=batch.device)
            watched.open_after(self.heads, lambda k: LateShare(_going_on(k, whole), seen.gates))
        with watched, copies(max(len(batch) // max(samples, 1), 1)):
            seen.output = self.call(self.module, batch)
        seen._calls = watched.calls
        logits = self.read(seen)
        if scaled:
            self._settle(watched, seen, shares)
        return logits[:samples] if isinstance(logits, Tensor) else logits

    def _settle(self, watched: Watch, seen: Pass, shares: Mapping[str, LateShare]) -> None:
        """Count the modules that skip work by themselves; see that every other region ran."""
        watched.settle()
        for name, bound in self.regions.items():
            if bound.row is not None:
                entries = _named(seen.gates, str(bound.share)).margin.numel()
                with region(shares[name]):
                    count(self.row_macs[name] * entries)
            elif not watched.ran(name):
                raise UserError(
                    f"The module '{name}' did not run, so the MACs behind its gate are unknown.",
                    "If the network skips it by itself, state the shape of its input: "
                    "Region(decision, row=(...)), or let `call` run everything.",
                )


def adapt(
    module: nn.Module,
    *,
    read: Callable[[Pass], Tensor] = _whole_output,
    call: Callable[[nn.Module, Tensor], Any] = _plain_call,
    sparse: Callable[[nn.Module, Tensor], Tensor] | None = None,
    watch: Sequence[str] = (),
    regions: Mapping[str, Shared | Region] | None = None,
    heads: Sequence[str] = (),
    min_batch: int = 1,
) -> Adapted:
    """Return a foreign module as a model: inputs in [0, 1] to logits, its gates in the trace.

    Args:
        module: put in eval mode; several networks that work together go in an nn.ModuleDict.
        read: gets the `Pass`, which is what the call left behind, and returns logits (B, K);
            calls its `decide` for every gate, or its `exits`. By default the output is the logits.
        call: (module, x) -> output, in which everything runs (dense execution). The place to
            normalise x, to hand a dict in, to drive a loop.
        sparse: (module, x) -> logits, in which the module skips work for real, if it can; not
            needed where every region has a row, as the module then always does.
        watch: names of modules whose calls `read` looks at: gates seen only from outside.
        regions: module name -> what scales the MACs of it and of all in it: the name of a
            decision, a function of the decisions (see `Region`), or a Region.
        heads: names of the modules that end each exit. After the k-th call among them, all that
            runs, inside modules or not, is scaled by the decision "exit{k}".
        min_batch: the smallest batch that the module can take; a smaller one is repeated.

    Raises:
        UserError: if a name is not that of a module, a row does not fit its module, or a region
            with a row lies in another region or after a head.
    """
    bound = {
        name: value if isinstance(value, Region) else Region(value)
        for name, value in (regions or {}).items()
    }
    for name in (*watch, *bound, *heads):
        _submodule(module, name)
    _check_rows(bound, heads)
    return Adapted(module, read, call, sparse, watch, bound, heads, min_batch)


def _named(gates: Gates, name: str) -> Decision:
    if name not in gates:
        raise UserError(
            f"A region is bound to the decision '{name}', which `read` did not make.",
            f"{suggest(name, gates)}Decisions made: {', '.join(gates) or 'none'}.",
        )
    return gates[name]


def _check_rows(regions: Mapping[str, Region], heads: Sequence[str]) -> None:
    """Refuse a region with a row that others scale too: if it did not run, nobody saw which."""
    for name in (name for name, bound in regions.items() if bound.row is not None):
        nested = (n for n in regions if n.startswith(f"{name}.") or name.startswith(f"{n}."))
        other = "the exits" if heads else next(nested, "")
        if other:
            raise UserError(
                f"The region '{name}' has a row, and cannot be combined with {other}.",
                "Decide for it alone, with a margin that is positive only where the rest runs too.",
            )


def _going_on(exit: int, whole: Tensor) -> Callable[[Gates], Share]:
    def share(gates: Gates) -> Share:
        if f"exit{exit}" in gates:
            return gates[f"exit{exit}"].share()
        return Share(lambda: whole, lambda: whole)  # after the last exit nothing is skipped

    return share


def _submodule(module: nn.Module, name: str) -> nn.Module:
    names = dict(module.named_modules())
    if name not in names:
        raise UserError(
            f"{type(module).__name__} has no module '{name}'.",
            f"{suggest(name, names)}See dict(net.named_modules()).",
        )
    return names[name]


@torch.no_grad()
def _macs_of_row(module: nn.Module, name: str, row: tuple[int, ...]) -> int:
    part = _submodule(module, name)
    weight = next((p for p in part.parameters()), torch.zeros(()))
    try:
        return macs_of(lambda: part(weight.new_zeros(1, *row)))
    except Exception as error:  # whatever the foreign module raises at a shape that is not its own
        raise UserError(
            f"The module '{name}' cannot take a row of shape {row}: {str(error).splitlines()[0]}",
            "Give the shape of one row of its input, without the batch.",
        ) from error
