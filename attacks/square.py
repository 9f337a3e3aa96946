"""Square attack: random search with square windows, on any score; asks the model, no gradient."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robustdyn.attacks.ascent import Found, aimed
from robustdyn.attacks.draws import uniform
from robustdyn.attacks.layout import Layout
from robustdyn.attacks.look import judge, judge_all
from robustdyn.attacks.objectives import Objective, get_objective
from robustdyn.attacks.parameters import check_part, check_whole
from robustdyn.attacks.registry import register_attack
from robustdyn.attacks.rows import filled_up
from robustdyn.attacks.windows import DRAWS, first_guess, linf_window, mass_window
from robustdyn.threat import Threat

_STREAMS = 2 << 32  # streams of this attack's random numbers, apart from others'
_HALVINGS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)  # of the queries


def _check_values(*, queries: int, part: float) -> None:
    check_whole(queries=queries, least=2)
    check_part(part=part)


@register_attack(objectives=("cross_entropy", "*"), check_values=_check_values)
def square(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    objective: "str | Objective" = "cross_entropy",
    seeds: Sequence[int],
    queries: int = 1000,
    part: float = 0.8,
) -> Tensor:
    """Return inputs (B, ...) that raise the hard score of `objective`, found by queries alone.

    Andriushchenko et al. 2020, arXiv:1912.00049, and its l1 form of Croce and Hein 2021,
    arXiv:2103.01208. Deviations: any score (exact MACs, class margin); a candidate that is as good
    is accepted too, since MACs change in steps and random search must be able to cross a plateau;
    it starts at the clean input where that is better than the first guess.

    A window is a square of an image (B, C, H, W), with one sign per channel; in a sequence
    (B, T, F) it is a stretch of time, with one sign per feature; in (B, D) a stretch of values; in
    a clip (B, T, C, H, W) a square through all frames, with one sign per frame and channel.

    Args:
        model, x, y, seeds: as in `pgd`.
        objective: only its score is read.
        queries: forward passes per sample, two at least.
        part: of the input that the first windows cover; falls with the queries, as in the paper.
    """
    return random_search(
        model,
        x,
        y,
        threat=threat,
        objective=get_objective(objective),
        seeds=seeds,
        queries=queries,
        part=part,
    ).x


def random_search(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    objective: Objective,
    seeds: Sequence[int],
    queries: int,
    part: float = 0.8,
    stream: int = 0,
    start: Tensor | None = None,
) -> Found:
    """Return the best inputs that the queries found, with their scores.

    Arguments as `square`; `start` (B, ...), inside the threat, replaces the clean input as the
    first query.
    """
    y = aimed(model, x, y, objective)
    best = x.clone() if start is None else start.clone()
    found, reached = judge_all(model, best, y, objective)
    rows = (~reached).nonzero().flatten()
    count, rows = len(rows), filled_up(rows)
    layout = Layout.of(x)
    first = uniform(seeds, layout.spread(x), stream=_STREAMS + 2 * stream)
    numbers = x.new_empty(len(x), queries, DRAWS + layout.channels)
    draws = uniform(seeds, numbers, stream=_STREAMS + 2 * stream + 1)
    for query in range(1, queries):
        if not count:
            break
        origin, here, limits = x[rows], best[rows], threat.at(rows, x)
        drawn = draws[rows, query]
        if query == 1:
            change = first_guess(layout, threat, first[rows])
        else:
            share = part / 2 ** sum(query / queries > after for after in _HALVINGS)
            move = linf_window if threat.norm == "linf" else mass_window
            change = move(layout, layout.spread(here - origin), threat, share, drawn)
        candidate = limits.project(origin + layout.gather(change), origin)
        verdict, own = judge(model, candidate, y[rows], objective).first(count), rows[:count]
        good = (verdict.score >= found[own]) & (verdict.score > -torch.inf)
        best[own[good]] = candidate[:count][good]
        found[own[good]] = verdict.score[good]
        if (good & verdict.reached).any():
            reached[own[good]] |= verdict.reached[good]
            left = (~reached[own]).nonzero().flatten()
            count, rows = len(left), rows[filled_up(left)] if len(left) else rows
    return Found(best, found, reached)
