"""A patch per sample: a small window of the input, at a known place or wherever it falls."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from robustdyn.attacks.apgd import auto_step
from robustdyn.attacks.ascent import aimed, ascend
from robustdyn.attacks.draws import uniform
from robustdyn.attacks.layout import Layout, corner_at, offsets, within
from robustdyn.attacks.look import look
from robustdyn.attacks.objectives import Objective, get_objective
from robustdyn.attacks.parameters import check_part, check_whole
from robustdyn.attacks.registry import register_attack
from robustdyn.attacks.rows import filled_up, over_values
from robustdyn.errors import UserError
from robustdyn.threat import Threat

PLACES = ("corner", "centre", "random")
_DRAWS = 3 << 32  # streams of this attack's random numbers, apart from others'


def _check_values(*, area: float, place: str, steps: int, draws: int) -> None:
    check_part(area=area)
    if place not in PLACES:
        raise UserError(f"place is {place!r}.", f"Choose one of: {', '.join(PLACES)}.")
    check_whole(steps=steps, draws=draws)


@register_attack(objectives=("cross_entropy", "*"), check_values=_check_values)
def patch(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    objective: "str | Objective" = "cross_entropy",
    seeds: Sequence[int],
    area: float = 0.02,
    place: str = "corner",
    steps: int = 50,
    draws: int = 4,
) -> Tensor:
    """Return inputs (B, ...) whose values outside one window are unchanged.

    Brown et al. 2017, arXiv:1712.09665, for one sample. A window is a square of an image or of all
    frames of a clip, a stretch of time of a sequence; the nearest to `area` in whole positions.
    Inside, the threat still holds: give linf and eps = 1 for a patch of any content.

    At a known place APGD runs inside the window. At a random one the content must serve wherever
    it falls: its gradient is the mean over `draws` places, new ones in each step (expectation over
    transformations, Athalye et al. 2018, arXiv:1707.07397); the content of the best mean score is
    kept, and put at a place that was never optimised for. That may serve worse than no patch.

    Args:
        model, x, y, seeds: as in `pgd`.
        area: as a part of the input's positions.
        place: "corner" (the first position), "centre" or "random".
        steps: of the gradient.
        draws: places per step, so gradients per step; only for a random place.
    """
    goal = get_objective(objective)
    if place == "random":
        return _anywhere(model, x, y, threat, goal, seeds, area, steps, draws)
    window = window_mask(x, area, place)
    inside = replace(threat, mask=window if threat.mask is None else window & threat.mask)
    limits: dict[str, Any] = {"threat": inside, "objective": goal, "seeds": seeds}
    step = auto_step(threat.norm, steps)
    return ascend(step, model, x, y, **limits, steps=steps, random_start=False).x


def window_mask(x: Tensor, area: float, place: str) -> Tensor:
    """Return the bool mask (1, ...) of a window at the "corner" or the "centre" of inputs."""
    layout = Layout.of(x)
    size = layout.window(area, least=1, odd=False)
    start = torch.full((1, 2), 0.5 if place == "centre" else 0.0, device=x.device)
    window = within(offsets(corner_at(start, layout, size), layout), size)
    return layout.gather(window.expand(1, layout.channels, -1, -1))


def _anywhere(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    threat: Threat,
    objective: Objective,
    seeds: Sequence[int],
    area: float,
    steps: int,
    draws: int,
) -> Tensor:
    count, rows = len(x), filled_up(torch.arange(len(x), device=x.device))
    labels = aimed(model, x, y, objective)[rows]
    threat, seeds = threat.at(rows, x), [seeds[row] for row in rows.tolist()]
    x = x[rows]
    layout = Layout.of(x)
    size = layout.window(area, least=1, odd=False)
    low, high = threat.bounds
    content = low + (high - low) * uniform(
        seeds, x.new_empty(len(x), layout.channels, *size), stream=_DRAWS
    )
    places = uniform(seeds, x.new_empty(len(x), steps * draws + 1, 2), stream=_DRAWS + 1)
    best, top = content, x.new_full((len(x),), -torch.inf, dtype=torch.float64)
    price = torch.ones_like(x.flatten(1)[:, 0])
    gathered = torch.zeros_like(content)
    for step in range(steps):
        total, score = torch.zeros_like(content), torch.zeros_like(top)
        for draw in range(step * draws, (step + 1) * draws):
            corner = corner_at(places[:, draw], layout, size)
            here = threat.project(_pasted(layout, x, content, corner), x)
            seen = look(
                model, here, labels, objective, price=price, seeds=seeds, stream=draw, eot=1
            )
            total = total + _cropped(layout.spread(seen.gradient), corner, size)
            score = score + seen.verdict.score / draws
        better = score > top
        best = torch.where(over_values(better, content), content, best)
        top = torch.where(better, score, top)
        length = total.abs().flatten(1).mean(1).clamp(min=torch.finfo(x.dtype).tiny)
        gathered = gathered + total / over_values(length, total)
        content = (content + 2.5 * (high - low) / steps * gathered.sign()).clamp(low, high)
    corner = corner_at(places[:, -1], layout, size)
    return threat.project(_pasted(layout, x, best, corner), x)[:count]


def _pasted(layout: Layout, x: Tensor, content: Tensor, corner: tuple[Tensor, Tensor]) -> Tensor:
    """Inputs (n, ...) with contents (n, C, h, w) at the corners (n, 1, 1, 1)."""
    places = offsets(corner, layout)
    size = (content.shape[2], content.shape[3])
    down, right = (p.clamp(0, s - 1) for p, s in zip(places, size, strict=True))
    laid = content[*_each(content), down, right]  # (n, C, H, W)
    return layout.gather(torch.where(within(places, size), laid, layout.spread(x)))


def _cropped(values: Tensor, corner: tuple[Tensor, Tensor], size: tuple[int, int]) -> Tensor:
    """The windows (n, C, h, w) of values (n, C, H, W) at the corners (n, 1, 1, 1)."""
    down = corner[0] + torch.arange(size[0], device=values.device)[:, None]
    right = corner[1] + torch.arange(size[1], device=values.device)
    return values[*_each(values), down, right]


def _each(values: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of every sample (n, 1, 1, 1) and every channel (C, 1, 1)."""
    samples, channels = (torch.arange(size, device=values.device) for size in values.shape[:2])
    return samples[:, None, None, None], channels[:, None, None]
