"""Hooks for one pass of a foreign module: what its modules were given and returned, and their MACs.

The hooks are there for the length of one pass, so a foreign module is left as it was, whatever
happens in between.
"""

import threading
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import ExitStack
from typing import Any, NamedTuple

from torch import Tensor, nn

from robustdyn.decision import Decision, Share
from robustdyn.macs import uncounted
from robustdyn.trace import open_regions, replace_regions


class Call(NamedTuple):
    """One call of a watched module: its positional inputs as they were, and its output."""

    inputs: tuple[Any, ...]
    output: Any


class LateShare(Share):
    """A share that is known once it is settled: when the decisions are made, after its region."""

    def __init__(
        self, resolve: Callable[[Mapping[str, Decision]], Share], gates: Mapping[str, Decision]
    ):
        self._resolve = resolve
        self._gates = gates

    def settle(self) -> None:
        """Become the share that the decisions give."""
        known = self._resolve(self._gates)
        super().__init__(
            lambda: known.hard,
            lambda: known.soft,
            known.maximum,
            decision=known.decision,
            factors=known.factors,
        )


class Watch:
    """A context in which a module's pass is watched.

    Attributes:
        calls: of each watched module, by name.
    """

    def __init__(self, module: nn.Module, names: Sequence[str]):
        self._module = module
        self.calls: dict[str, list[Call]] = {name: [] for name in names}
        self._shares: Mapping[str, LateShare] = {}
        self._uncounted: Set[str] = frozenset()
        self._heads: Sequence[str] = ()
        self._after: Callable[[int], LateShare] | None = None
        self._ran: set[str] = set()
        self._open: dict[str, LateShare] = {}  # the regions that are running
        self._passed: list[LateShare] = []  # one for each head that has run

    def scale(self, shares: Mapping[str, LateShare], *, uncounted: Set[str]) -> None:
        """Scale what runs in the named modules; leave those in `uncounted` out of every count."""
        self._shares, self._uncounted = shares, uncounted

    def open_after(self, heads: Sequence[str], share: Callable[[int], LateShare]) -> None:
        """Scale all that runs after the k-th call of a head by share(k)."""
        self._heads, self._after = heads, share

    def settle(self) -> None:
        """Settle all shares: the decisions are made."""
        for share in (*self._shares.values(), *self._passed):
            share.settle()

    def ran(self, name: str) -> bool:
        """Return whether the named module, or one in it, was called."""
        return name in self._ran

    def __enter__(self) -> "Watch":
        self._thread = threading.get_ident()
        self._outer = open_regions()
        self._stack = ExitStack()
        self._stack.callback(replace_regions, self._outer)
        try:
            for name in self.calls:
                self._hook(self._module.get_submodule(name), self._note(name))
            for name in self._heads:
                self._hook(self._module.get_submodule(name), self._pass)
            for name in self._shares:
                self._guard(name)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_) -> None:
        self._stack.close()

    def _hook(self, module: nn.Module, after: Callable[..., None], **options: bool) -> None:
        self._stack.enter_context(module.register_forward_hook(after, **options))

    def _note(self, name: str) -> Callable[..., None]:
        def note(module: nn.Module, args: tuple, output: Any) -> None:
            if threading.get_ident() == self._thread:
                # Foreign code thresholds in place, which would change what is noted here.
                self.calls[name].append(Call(tuple(map(_own, args)), _own(output)))

        return note

    def _pass(self, module: nn.Module, args: tuple, output: Any) -> None:
        if self._after is not None and threading.get_ident() == self._thread:
            self._passed.append(self._after(len(self._passed)))
            self._put()

    def _guard(self, name: str) -> None:
        """Hook the module and all in it: a container may never be called itself."""
        depth = 0
        pause = ExitStack()

        def enter(module: nn.Module, args: tuple) -> None:
            nonlocal depth
            if threading.get_ident() != self._thread:
                return
            depth += 1
            if depth == 1:
                self._ran.add(name)
                self._open[name] = self._shares[name]
                if name in self._uncounted:
                    pause.enter_context(uncounted())
                self._put()

        def leave(module: nn.Module, args: tuple, output: Any) -> None:
            nonlocal depth
            if threading.get_ident() != self._thread:
                return
            depth -= 1
            if depth == 0:
                del self._open[name]
                pause.close()
                self._put()

        self._stack.callback(pause.close)
        for part in self._module.get_submodule(name).modules():
            self._stack.enter_context(part.register_forward_pre_hook(enter))
            self._hook(part, leave, always_call=True)

    def _put(self) -> None:
        replace_regions((*self._outer, *self._passed, *self._open.values()))


def _own(value: Any) -> Any:
    """A copy of a tensor, or of the tensors in a tuple, list or dict, that nobody else changes."""
    if isinstance(value, Tensor):
        with uncounted():
            return value.clone()
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(_own, value))
    if isinstance(value, list | tuple):
        return type(value)(map(_own, value))
    if isinstance(value, dict):
        return {key: _own(part) for key, part in value.items()}
    return value
