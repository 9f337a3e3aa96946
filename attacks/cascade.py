"""Several attacks one after the other on what is left: the worst case of each sample."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from robustdyn.attacks.apgd import auto_step
from robustdyn.attacks.ascent import Found, aimed, ascend
from robustdyn.attacks.look import judge_all
from robustdyn.attacks.objectives import Objective
from robustdyn.attacks.parameters import check_whole
from robustdyn.attacks.rows import filled_up
from robustdyn.attacks.square import random_search
from robustdyn.gates import estimator
from robustdyn.threat import Threat
from robustdyn.trace import trace

FINE_STEP = 0.5  # in eps, the first step of a run that refines what was found


@dataclass(frozen=True)
class Batch:
    """What a stage gets: the samples still to attack, and the best of each so far."""

    model: nn.Module
    x: Tensor
    y: Tensor
    best: Tensor
    threat: Threat
    seeds: Sequence[int]


Stage = Callable[[Batch, int], Found]  # (batch, stream of its random numbers) -> Found


def ascent(objective: Objective, *, steps: int, by: str = "straight_through", fine: bool) -> Stage:
    """Return the stage of one APGD run under the gradient estimator `by`.

    Args:
        fine: starts at the best so far with small steps, instead of a random start.
    """

    def run(batch: Batch, stream: int) -> Found:
        norm = batch.threat.norm
        with estimator(by):
            return ascend(
                auto_step(norm, steps, first=FINE_STEP) if fine else auto_step(norm, steps),
                batch.model,
                batch.x,
                batch.y,
                threat=batch.threat,
                objective=objective,
                seeds=batch.seeds,
                steps=steps,
                random_start=not fine,
                start=batch.best if fine else None,
                stream=stream,
            )

    return run


def queries(objective: Objective, *, count: int) -> Stage:
    """Return the stage of one Square run from the best so far."""

    def run(batch: Batch, stream: int) -> Found:
        return random_search(
            batch.model,
            batch.x,
            batch.y,
            threat=batch.threat,
            objective=objective,
            seeds=batch.seeds,
            queries=count,
            stream=stream,
            start=batch.best,
        )

    return run


def alone(attack: Callable[..., Tensor], objective: Objective, **params: int) -> Stage:
    """Return the stage that runs a whole attack from the clean input, as it would run alone.

    Args:
        attack: with the contract of an attack; it has its objective in itself.
        objective: judges what it returns.
    """

    def run(batch: Batch, stream: int) -> Found:
        found = attack(
            batch.model,
            batch.x,
            batch.y,
            threat=batch.threat,
            objective=None,
            seeds=batch.seeds,
            **params,
        )
        return Found(found, *judge_all(batch.model, found, batch.y, objective))

    return run


def cascade(
    stages: Sequence[Stage],
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    objective: Objective,
    seeds: Sequence[int],
    candidates: Sequence[Tensor] = (),
) -> Found:
    """Return the best that any stage found for each sample, or the clean input.

    A sample goes on to the next stage until it has nothing left to gain. All stages must judge by
    the same score, that of `objective`. `candidates` (B, ...) are inputs found elsewhere, that are
    judged first.
    """
    labels = aimed(model, x, y, objective)
    best = x.clone()
    score, reached = (part.clone() for part in judge_all(model, x, labels, objective))
    for candidate in candidates:
        verdict = judge_all(model, candidate, labels, objective)
        better = verdict.score > score
        best[better], score[better] = candidate[better], verdict.score[better]
        reached |= verdict.reached & better
    for stream, stage in enumerate(stages):
        rows = (~reached).nonzero().flatten()
        if not len(rows):
            break
        left = Batch(
            model,
            x[rows],
            y[rows],
            best[rows],
            threat.at(rows, x),
            [seeds[row] for row in rows.tolist()],
        )
        found = stage(left, stream)
        better = found.score > score[rows]
        best[rows[better]] = found.x[better]
        score[rows[better]] = found.score[better]
        reached[rows] |= found.reached & better
    return Found(best, score, reached)


def check_budget(*, steps: int, queries: int) -> None:
    """Check the budget of a cascade.

    Raises:
        UserError: if it is out of range.
    """
    check_whole(steps=steps)
    check_whole(queries=queries, least=2)


class Outputs(NamedTuple):
    """What an ensemble must know of a model to choose its stages."""

    classes: int
    exits: bool


@torch.no_grad()
def outputs(model: nn.Module, x: Tensor) -> Outputs:
    """Return how many classes a model has, and whether it has exits, from inputs (B, ...)."""
    with trace() as passed:
        logits = model(x[filled_up(torch.arange(1, device=x.device))])
    return Outputs(logits.shape[1], bool(passed.exits))
