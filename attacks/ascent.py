"""The loop of every gradient attack: look, judge, step, project; each attack states its step."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from robustdyn.attacks.ball import inside
from robustdyn.attacks.curves import new_curve
from robustdyn.attacks.look import Look, judge, look
from robustdyn.attacks.objectives import Objective
from robustdyn.attacks.rows import filled_up
from robustdyn.gates import estimator
from robustdyn.threat import Threat

KAPPA = 0.1  # how far inside its constraint an iterate is pushed
PRICE_RATE = 0.2  # of the dual ascent on the constraint's multiplier
MOST_PRICE = 100.0
State = tuple[Tensor, ...]  # of one method, each (n, ...): row k belongs to the k-th running sample


class Step(NamedTuple):
    """Where the running samples stand: all (n, ...)."""

    number: int
    here: Tensor
    origin: Tensor
    look: Look
    price: Tensor
    threat: Threat


class Method(Protocol):
    """What one attack does that others do not."""

    def begin(self, here: Tensor, threat: Threat) -> State:
        """Return the state at the start (n, ...)."""

    def move(self, step: Step, state: State) -> tuple[Tensor, State]:
        """Return the next iterates (n, ...), inside the threat, and the next state."""


class Found(NamedTuple):
    """The best inputs (B, ...), their scores (B,), and whether nothing is left to gain (B,)."""

    x: Tensor
    score: Tensor
    reached: Tensor


def ascend(
    method: Method,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    objective: Objective,
    seeds: Sequence[int],
    steps: int,
    restarts: int = 1,
    random_start: bool = True,
    eot: int = 1,
    stream: int = 0,
    start: Tensor | None = None,
) -> Found:
    """Return the best iterate of each sample, as judged by the hard model.

    A sample that has nothing left to gain leaves the batch. Under a constraint the multiplier of
    each sample starts at 1 and follows dual ascent.

    Args:
        method: begins a run and makes its steps.
        steps: gradients per restart; one iterate more is judged.
        random_start: False starts at the clean input.
        eot: passes per gradient, see `look`.
        stream: of the first restart's random numbers; the next restart has the next stream.
        start: (B, ...), inside the threat, where to start without a random start.
    """
    y = aimed(model, x, y, objective)
    best = x.clone()
    score = torch.full((len(x),), -torch.inf, dtype=torch.float64, device=x.device)
    reached = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for restart in range(restarts):
        if reached.all():
            break
        first = x if start is None else start
        if random_start:
            first = threat.project(x + inside(x, threat, seeds, stream=stream + restart), x)
        running = _Running.begin(method, first, x, y, threat, (~reached).nonzero().flatten())
        curve = new_curve(steps)
        for number in range(steps + 1):
            rows, here = running.rows, running.here
            seen = None
            if number == steps:
                verdict = judge(model, here, running.labels, objective)
            else:
                drawn = [seeds[row] for row in rows.tolist()]
                seen = look(
                    model,
                    here,
                    running.labels,
                    objective,
                    price=running.price,
                    seeds=drawn,
                    stream=(stream + restart) * (steps + 1) + number,
                    eot=eot,
                )
                verdict = seen.verdict
                if curve is not None:
                    curve.add(drawn, seen.value)
            verdict, own = verdict.first(running.count), rows[: running.count]
            better = verdict.score > score[own]
            best[own[better]] = here[: running.count][better]
            score[own[better]] = verdict.score[better]
            reached[own] |= verdict.reached
            if seen is not None:
                running.step(method, number, seen, constrained=objective.constraint is not None)
            if verdict.reached.any() and not running.drop(reached, x, threat):
                break
    return Found(best, score, reached)


def aimed(model: nn.Module, x: Tensor, y: Tensor, objective: Objective) -> Tensor:
    """Return what the objective's functions get as y, from the clean inputs (B, ...)."""
    if objective.aim is None:
        return y
    rows = filled_up(torch.arange(len(x), device=x.device))
    with torch.no_grad(), estimator("straight_through"):
        return objective.aim(model(x[rows])[: len(x)], y)


@dataclass
class _Running:
    """The samples that can still gain: row k of every tensor belongs to sample rows[k].

    A short list of rows is filled up by repeating some, see filled_up; `count` are distinct.
    """

    rows: Tensor
    count: int
    here: Tensor
    origin: Tensor
    labels: Tensor
    limits: Threat
    price: Tensor
    state: State

    @staticmethod
    def begin(
        method: Method, start: Tensor, x: Tensor, y: Tensor, threat: Threat, rows: Tensor
    ) -> "_Running":
        count, rows = len(rows), filled_up(rows)
        here, limits = start[rows], threat.at(rows, x)
        price = torch.ones(len(rows), dtype=x.dtype, device=x.device)
        state = method.begin(here, limits)
        return _Running(rows, count, here, x[rows], y[rows], limits, price, state)

    def step(self, method: Method, number: int, seen: Look, *, constrained: bool) -> None:
        """Move every row one step, after dual ascent on its multiplier."""
        if constrained:
            self.price = (self.price + PRICE_RATE * (KAPPA - seen.slack)).clamp(0, MOST_PRICE)
        step = Step(number, self.here, self.origin, seen, self.price, self.limits)
        self.here, self.state = method.move(step, self.state)

    def drop(self, reached: Tensor, x: Tensor, threat: Threat) -> bool:
        """Let the samples go that have reached their goal; return whether any is left."""
        left = (~reached[self.rows[: self.count]]).nonzero().flatten()
        if not len(left):
            return False
        self.count, left = len(left), filled_up(left)
        self.rows, self.here, self.origin = self.rows[left], self.here[left], self.origin[left]
        self.labels, self.price = self.labels[left], self.price[left]
        self.limits = threat.at(self.rows, x)
        self.state = tuple(part[left] for part in self.state)
        return True
