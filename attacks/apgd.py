"""Auto-PGD: gradient ascent that chooses its own step sizes, for any objective."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from robustdyn.attacks.ascent import KAPPA, Method, State, Step, ascend
from robustdyn.attacks.ball import steepest
from robustdyn.attacks.objectives import Objective, get_objective
from robustdyn.attacks.parameters import check_run
from robustdyn.attacks.registry import register_attack
from robustdyn.attacks.rows import over_values
from robustdyn.threat import Threat

MOMENTUM = 0.75
LEAST_RISES = 0.75  # of the steps since the last checkpoint; with fewer the step is halved


class Memory(NamedTuple):
    """What Auto-PGD remembers of each sample, all (n, ...); "best" is by what it climbs."""

    previous: Tensor
    best: Tensor
    best_gradient: Tensor
    best_value: Tensor
    best_slack: Tensor
    last_climbed: Tensor
    climbed_at_check: Tensor
    size: Tensor
    rises: Tensor
    halved: Tensor

    @staticmethod
    def begin(here: Tensor, size: float) -> "Memory":
        """Return the memory before the first step."""
        low = torch.full((len(here),), -torch.inf, dtype=here.dtype, device=here.device)
        zero, yes = torch.zeros_like(low), torch.ones_like(low, dtype=torch.bool)
        step = torch.full_like(low, size)
        return Memory(here, here, here, low, zero, low, low, step, zero, yes)

    def see(self, step: Step) -> tuple["Memory", Tensor]:
        """Return the memory after a look, and what was climbed (n,) at the best iterate."""
        climbed = climb(step.look.value, step.look.slack, step.price)
        known = climb(self.best_value, self.best_slack, step.price)
        better = climbed > known
        wide = over_values(better, self.best)
        rose = (climbed > self.last_climbed) & (step.number > 0)
        memory = self._replace(
            best=torch.where(wide, step.here, self.best),
            best_gradient=torch.where(wide, step.look.gradient, self.best_gradient),
            best_value=torch.where(better, step.look.value, self.best_value),
            best_slack=torch.where(better, step.look.slack, self.best_slack),
            last_climbed=climbed,
            rises=self.rises + rose,
        )
        return memory, torch.where(better, climbed, known)


def climb(value: Tensor, slack: Tensor, price: Tensor) -> Tensor:
    """Return what is climbed, (n,): the value less what is missing to the constraint."""
    return value - price * (KAPPA - slack).clamp(min=0)


def checkpoints(steps: int) -> dict[int, int]:
    """Return the steps at which the step size is reconsidered, and the steps since the last one.

    The first after 22 % of the steps, each next interval 3 % shorter, down to 6 %.
    """
    found, gap, at = {}, max(int(0.22 * steps), 1), 0
    while at + gap < steps:
        at += gap
        found[at] = gap
        gap = max(gap - max(int(0.03 * steps), 1), max(int(0.06 * steps), 1))
    return found


class AdaptiveStep(NamedTuple):
    """The steps of Auto-PGD under linf and l2: momentum, and halving at checkpoints."""

    checks: dict[int, int]
    first: float = 2.0  # step, in eps

    def begin(self, here: Tensor, threat: Threat) -> State:
        return Memory.begin(here, self.first * threat.eps)

    def move(self, step: Step, state: State) -> tuple[Tensor, State]:
        memory, best = Memory(*state).see(step)
        here, gradient = step.here, step.look.gradient
        if step.number in self.checks:
            few = memory.rises < LEAST_RISES * self.checks[step.number]
            stuck = ~memory.halved & (best <= memory.climbed_at_check)
            memory, here, gradient = _restart(memory, few | stuck, best, here, gradient)
        project, origin = step.threat.project, step.origin
        stride = over_values(memory.size, here) * steepest(gradient, step.threat.norm)
        target = project(here + stride, origin)
        if step.number:
            pulled = MOMENTUM * (target - here) + (1 - MOMENTUM) * (here - memory.previous)
            target = project(here + pulled, origin)
        return target, memory._replace(previous=here)


def _restart(
    memory: Memory, halve: Tensor, best: Tensor, here: Tensor, gradient: Tensor
) -> tuple[Memory, Tensor, Tensor]:
    """Halve the steps of some samples and put these back to their best iterate."""
    memory = memory._replace(
        size=torch.where(halve, memory.size / 2, memory.size),
        rises=torch.zeros_like(memory.rises),
        halved=halve,
        climbed_at_check=best,
    )
    wide = over_values(halve, here)
    here = torch.where(wide, memory.best, here)
    return memory, here, torch.where(wide, memory.best_gradient, gradient)


class SparseStep(NamedTuple):
    """The steps of Auto-PGD under l1: as sparse as the best iterate asks for.

    Croce and Hein 2021, arXiv:2103.01208. A step changes a part of the values, those with the
    largest gradients: at first 20 %, then 1 / 1.5 of those that the best iterate changed. Where
    that part still shrinks by 5 %, the step size goes back to eps; else it falls by 1.5, down to
    eps / 10. Deviations: one run at eps, without their runs at 3 and 2 eps before it.
    """

    every: int

    def begin(self, here: Tensor, threat: Threat) -> State:
        memory = Memory.begin(here, threat.eps)
        part = torch.full_like(memory.size, 0.2)
        return (*memory, part, torch.ones_like(part))

    def move(self, step: Step, state: State) -> tuple[Tensor, State]:
        *parts, part, changed_before = state
        memory, _ = Memory(*parts).see(step)
        here, gradient, eps = step.here, step.look.gradient, step.threat.eps
        if step.number and step.number % self.every == 0:
            changed = (memory.best != step.origin).flatten(1).to(here).mean(1)
            sparser = changed < 0.95 * changed_before
            size = torch.where(sparser, torch.full_like(part, eps), memory.size / 1.5)
            memory = memory._replace(size=size.clamp(min=eps / 10))
            part, changed_before = changed / 1.5, changed
            wide = over_values(sparser, here)
            here = torch.where(wide, memory.best, here)
            gradient = torch.where(wide, memory.best_gradient, gradient)
        stride = over_values(memory.size, here) * steepest(gradient, "l1", part=part)
        return step.threat.project(here + stride, step.origin), (*memory, part, changed_before)


def auto_step(norm: str, steps: int, *, first: float = 2.0) -> Method:
    """Return the step rule of Auto-PGD for a norm and a number of steps.

    `first` is the first step in eps; l1 has its own.
    """
    if norm == "l1":
        return SparseStep(max(int(0.04 * steps), 1))
    return AdaptiveStep(checkpoints(steps), first)


@register_attack(objectives=("cross_entropy", "*"), check_values=check_run)
def apgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    objective: "str | Objective" = "cross_entropy",
    seeds: Sequence[int],
    steps: int = 50,
    restarts: int = 1,
    random_start: bool = True,
    eot: int = 1,
) -> Tensor:
    """Return inputs (B, ...) that maximise `objective` inside `threat`; no step size to choose.

    Croce and Hein 2020, arXiv:2003.01690: step 2 eps, momentum .75; at checkpoints the step is
    halved, and the best iterate taken up again, where fewer than 75 % of the steps rose or the
    best did not. Under l1 the sparse steps of arXiv:2103.01208. Deviations: step sizes follow the
    objective, but the iterate that is returned is the best as judged by the hard model; a sample
    that has nothing left to gain leaves the batch; starts are uniform in the ball.

    Args:
        model, x, y, seeds, restarts, random_start: as in `pgd`.
        steps: gradient steps per restart.
        eot: passes whose gradients are averaged, for random gates (the estimator "gumbel") and
            random models.
    """
    return ascend(
        auto_step(threat.norm, steps),
        model,
        x,
        y,
        threat=threat,
        objective=get_objective(objective),
        seeds=seeds,
        steps=steps,
        restarts=restarts,
        random_start=random_start,
        eot=eot,
    ).x
