"""Square attack: random search with square windows, on any score; asks the model, no gradient."""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor, nn

from robustdyn.attacks.ascent import Found, aimed
from robustdyn.attacks.draws import uniform
from robustdyn.attacks.layout import Layout, corner_at, offsets, within
from robustdyn.attacks.look import judge, judge_all
from robustdyn.attacks.objectives import Objective, get_objective
from robustdyn.attacks.registry import register_attack
from robustdyn.attacks.rows import MIN_ROWS, at_least, over_values
from robustdyn.errors import UserError
from robustdyn.threat import Threat

_DRAWS = 2 << 32  # streams of this attack's random numbers, apart from others'
_HALVINGS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)  # of the queries
_TILES = 5  # along each side, of the first guess under l2 and l1


def _check_values(*, queries: int, part: float) -> None:
    if isinstance(queries, bool) or not (isinstance(queries, int) and queries >= 2):
        raise UserError(f"queries is {queries!r}.", "Give a whole number of queries, 2 or more.")
    if not (isinstance(part, int | float) and 0 < part <= 1):
        raise UserError(f"part is {part!r}.", "Give a part of the input, above 0 and at most 1.")


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
    count, rows = len(rows), at_least(rows, MIN_ROWS) if len(rows) else rows
    layout = Layout.of(x)
    first = uniform(seeds, layout.spread(x), stream=_DRAWS + 2 * stream)
    numbers = x.new_empty(len(x), queries, 5 + layout.channels)
    draws = uniform(seeds, numbers, stream=_DRAWS + 2 * stream + 1)
    for query in range(1, queries):
        if not count:
            break
        origin, here, limits = x[rows], best[rows], threat.at(rows, x)
        drawn = draws[rows, query]
        if query == 1:
            change = _first_guess(layout, threat, first[rows])
        else:
            share = part / 2 ** sum(query / queries > after for after in _HALVINGS)
            move = _linf_window if threat.norm == "linf" else _mass_window
            change = move(layout, layout.spread(here - origin), threat, share, drawn)
        candidate = limits.project(origin + layout.gather(change), origin)
        verdict = judge(model, candidate, y[rows], objective)
        good = verdict.score >= found[rows]
        best[rows[good]] = candidate[good]
        found[rows[good]] = verdict.score[good]
        if (good & verdict.reached).any():
            reached[rows[good]] |= verdict.reached[good]
            left = (~reached[rows[:count]]).nonzero().flatten()
            count, rows = len(left), rows[at_least(left, MIN_ROWS)] if len(left) else rows
    return Found(best, found, reached)


def _signs(numbers: Tensor) -> Tensor:
    return torch.where(numbers < 0.5, -1.0, 1.0)


def _linf_window(
    layout: Layout, change: Tensor, threat: Threat, share: float, drawn: Tensor
) -> Tensor:
    """`change` (n, C, H, W) with one window set to eps or -eps, by channel."""
    size = layout.window(share, least=1, odd=False)
    inside = within(offsets(corner_at(drawn[:, :2], layout, size), layout), size)
    signs = _signs(drawn[:, 5 : 5 + layout.channels])[:, :, None, None]
    return torch.where(inside, threat.eps * signs, change)


def _mass_window(
    layout: Layout, change: Tensor, threat: Threat, share: float, drawn: Tensor
) -> Tensor:
    """`change` (n, C, H, W) with the mass of two windows, and what is left of eps, in the first."""
    order = 2 if threat.norm == "l2" else 1
    size = layout.window(share, least=3, odd=True)
    places = offsets(corner_at(drawn[:, :2], layout, size), layout)
    first = within(places, size)
    second = within(offsets(corner_at(drawn[:, 2:4], layout, size), layout), size)

    def mass(values: Tensor, dims: tuple[int, ...]) -> Tensor:
        return values.abs().pow(order).sum(dims, keepdim=True)

    spare = (threat.eps**order - mass(change, (1, 2, 3))).clamp(min=0) / layout.channels
    room = (spare + mass(change * (first | second), (2, 3))) ** (1 / order)  # (n, C, 1, 1)
    old = change * first
    old = old / (mass(old, (1, 2, 3)) ** (1 / order) + 1e-12)
    signs = _signs(drawn[:, 5 : 5 + layout.channels])[:, :, None, None]
    new = old + signs * _placed(places, size, drawn[:, 4] < 0.5, first, order)
    new = new / (mass(new, (2, 3)) ** (1 / order) + 1e-12) * room
    change = torch.where(second, torch.zeros_like(change), change)
    return torch.where(first, new, change)


def _placed(
    places: tuple[Tensor, Tensor],
    size: tuple[int, int],
    turned: Tensor,
    inside: Tensor,
    order: int,
) -> Tensor:
    """The bump of a window at each sample's window, turned for some; (n, 1, H, W)."""
    down, right = (o.clamp(0, s - 1) for o, s in zip(places, size, strict=True))
    bump = _bump(*size, order).to(inside.device)
    straight = bump[down, right]
    if size[0] != size[1]:
        return straight * inside
    return torch.where(turned[:, None, None, None], bump.T[down, right], straight) * inside


@cache
def _bump(height: int, width: int, order: int) -> Tensor:
    """Two pyramids, one up and one down, of length 1 in the norm; (height, width)."""
    top = _pyramid(height // 2, width)
    both = torch.cat([top, -_pyramid(height - height // 2, width)])
    return both / both.norm(p=order)


def _pyramid(height: int, width: int) -> Tensor:
    """A bump that falls with the squared distance from its middle, of length 1 in l2."""
    bump = torch.zeros(height, width)
    if not height:
        return bump
    middle = height // 2, width // 2
    for ring in range(max(middle) + 1):
        (top, bottom), (left, right) = (
            (max(m - ring, 0), min(m + ring + 1, s))
            for m, s in zip(middle, (height, width), strict=True)
        )
        bump[top:bottom, left:right] += 1 / (ring + 1) ** 2
    return bump / bump.norm()


def _first_guess(layout: Layout, threat: Threat, numbers: Tensor) -> Tensor:
    """Stripes under linf, tiles of bumps otherwise, from numbers (n, C, H, W); of length eps."""
    if threat.norm == "linf":
        stripes = numbers[:, :, :1] if layout.width > 1 else numbers
        return threat.eps * _signs(stripes).expand_as(numbers)
    order = 2 if threat.norm == "l2" else 1
    tall, wide = (max(side // _TILES, 1) for side in (layout.height, layout.width))
    change = torch.zeros_like(numbers)
    bump = _bump(tall, wide, order).to(numbers.device)
    for top in range(0, layout.height - tall + 1, tall):
        for left in range(0, layout.width - wide + 1, wide):
            sign = _signs(numbers[:, :, top : top + 1, left : left + 1])
            change[:, :, top : top + tall, left : left + wide] = sign * bump
    length = change.abs().pow(order).sum((1, 2, 3)) ** (1 / order)
    return threat.eps * change / over_values(length.clamp(min=1e-12), change)
