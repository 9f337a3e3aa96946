"""Timing: a black box that shows nothing but how long it took."""

from collections.abc import Callable, Sequence
from time import perf_counter

import torch
from torch import Tensor, nn

from robustdyn.attacks.boundary import random_walk
from robustdyn.attacks.parameters import check_whole
from robustdyn.attacks.registry import register_attack
from robustdyn.errors import UserError
from robustdyn.execution import execution
from robustdyn.threat import Threat

Clock = Callable[[nn.Module, Tensor], Tensor]  # (model, x (B, ...)) -> (B,), larger is slower
REPEATS = 3


@torch.no_grad()
def sparse_seconds(model: nn.Module, x: Tensor) -> Tensor:
    """Return the seconds (B,) that sparse execution of each sample alone takes: the least of 3."""
    seconds = []
    with execution("sparse"):
        for sample in x.split(1):
            times = []
            for _ in range(REPEATS):
                _wait(x.device)
                start = perf_counter()
                model(sample)
                _wait(x.device)
                times.append(perf_counter() - start)
            seconds.append(min(times))
    return torch.tensor(seconds, dtype=torch.float64, device=x.device)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _check_values(*, queries: int, clock: Clock | None) -> None:
    check_whole(queries=queries)
    if clock is not None and not callable(clock):
        raise UserError(
            f"clock is {clock!r}.", "Give a function (model, x) -> (B,), or leave it out."
        )


@register_attack(check_values=_check_values)
def timing(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    objective: None,
    seeds: Sequence[int],
    queries: int = 200,
    clock: Clock | None = None,
) -> Tensor:
    """Return inputs (B, ...) that took longer and longer, found with a clock alone.

    The walk of `comparison`, led by measured time; each step measures the place and the candidate
    side by side. With the default clock the one attack here that is not pure: times scatter, so
    neither does a run repeat bit for bit, nor must it come out slower than the clean input.

    Args:
        seeds: one per sample, for the walk.
        queries: measurements per sample; of the default clock each is three passes at batch 1.
        clock: (model, x) -> (B,), larger is slower; by default the seconds of sparse execution.
    """
    measure = sparse_seconds if clock is None else clock
    return random_walk(
        lambda at: measure(model, at), x, threat=threat, seeds=seeds, queries=queries, again=True
    )
