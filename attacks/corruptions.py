"""Common corruptions at five severities: what happens without an adversary."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustdyn.attacks.draws import normal
from robustdyn.attacks.layout import Layout
from robustdyn.attacks.registry import register_attack
from robustdyn.attacks.rows import over_values
from robustdyn.errors import UserError, suggest
from robustdyn.threat import Threat

_DRAWS = 4 << 32


def gaussian_noise(x: Tensor, amount: float, seeds: Sequence[int]) -> Tensor:
    """Return x plus normal noise of standard deviation `amount`."""
    return x + amount * normal(seeds, x, stream=_DRAWS)


def blur(x: Tensor, amount: float, seeds: Sequence[int]) -> Tensor:
    """Return x smoothed by a Gaussian of `amount` positions: over height and width, or time."""
    layout = Layout.of(x)
    reach = max(round(4 * amount), 1)
    places = torch.arange(-reach, reach + 1, dtype=torch.float64)
    weights = torch.exp(-places.square() / (2 * amount**2))
    taps = (weights / weights.sum()).tolist()
    values = layout.spread(x)  # (B, C, H, W)
    for dim in (2, 3):
        if values.shape[dim] > 1:
            values = _smoothed(values, taps, dim)
    return layout.gather(values)


def _smoothed(values: Tensor, taps: list[float], dim: int) -> Tensor:
    """Values (B, C, H, W) averaged along `dim`; the first and last are repeated beyond the ends."""
    reach, length = len(taps) // 2, values.shape[dim]
    pad = (0, 0, reach, reach) if dim == 2 else (reach, reach, 0, 0)
    padded = F.pad(values, pad, mode="replicate")
    total = torch.zeros_like(values)
    for k, tap in enumerate(taps):
        total = total + tap * padded.narrow(dim, k, length)
    return total


def brightness(x: Tensor, amount: float, seeds: Sequence[int]) -> Tensor:
    """Return x plus `amount` everywhere."""
    return x + amount


def contrast(x: Tensor, amount: float, seeds: Sequence[int]) -> Tensor:
    """Return x with its distance to each sample's mean scaled by `amount`."""
    mean = over_values(x.flatten(1).mean(1), x)
    return mean + amount * (x - mean)


KINDS: dict[str, tuple[Callable[..., Tensor], tuple[float, ...]]] = {
    "gaussian_noise": (gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "blur": (blur, (0.4, 0.6, 0.7, 0.8, 1.0)),
    "brightness": (brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": (contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
}
"""Each with its amounts at severity 1 to 5."""


def _check_values(*, kind: str, severity: int) -> None:
    if str(kind) not in KINDS:
        raise UserError(
            f"Unknown corruption '{kind}'.",
            f"{suggest(str(kind), KINDS)}Choose one of: {', '.join(KINDS)}.",
        )
    if isinstance(severity, bool | float) or severity not in range(1, 6):
        raise UserError(f"severity is {severity!r}.", "Give a whole number from 1 to 5.")


@register_attack(check_values=_check_values)
def corruption(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    objective: None,
    seeds: Sequence[int],
    kind: str = "gaussian_noise",
    severity: int = 3,
) -> Tensor:
    """Return the inputs (B, ...) with a common corruption: noise, blur, brightness or contrast.

    Hendrycks and Dietterich 2019, arXiv:1903.12261, with the amounts of its version for images of
    32 x 32. It aims at nothing and never looks at the model: what an attack adds to it is the
    adversary's part. Like every attack it is cut to the threat, so that a row's `valid` means the
    same for all: give linf and eps = 1 for the whole corruption, a smaller eps for as much of it
    as an attacker with that eps could do. Deviations: brightness is added to all channels, not to
    the value of HSV; in a sequence, blur smooths over time.

    Args:
        kind: "gaussian_noise", "blur", "brightness" or "contrast".
        severity: 1 to 5.
    """
    corrupt, amounts = KINDS[kind]
    corrupted = corrupt(x, amounts[severity - 1], seeds).clamp(*threat.bounds)
    return threat.project(corrupted, x)
