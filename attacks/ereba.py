"""EREBA: learn from queries what an input costs, then attack what was learnt."""

from collections.abc import Sequence
from dataclasses import replace
from math import sqrt
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustdyn.attacks.ascent import ascend
from robustdyn.attacks.ball import inside
from robustdyn.attacks.draws import normal, uniform
from robustdyn.attacks.layout import Layout
from robustdyn.attacks.look import judge_all
from robustdyn.attacks.objectives import Objective, get_objective, never
from robustdyn.attacks.parameters import check_whole
from robustdyn.attacks.pgd import FixedStep
from robustdyn.attacks.registry import register_attack
from robustdyn.attacks.rows import over_values
from robustdyn.attacks.universal import calibration, check_plan, made_for
from robustdyn.data import Dataset
from robustdyn.threat import Threat
from robustdyn.trace import Trace
from robustdyn.weights import state_sha256

WIDTHS = (16, 32, 32)
EPOCHS, BATCH, RATE = 20, 32, 3e-3
_DRAWS = 7 << 32


class Surrogate(nn.Module):
    """A small convolutional network from inputs of any rank to a guess of their cost, (B, 1)."""

    def __init__(self, x: Tensor):
        super().__init__()
        widths = [Layout.of(x).channels, *WIDTHS]
        self.layers = nn.ParameterList()
        for k, (wide, next_wide) in enumerate(zip(widths, WIDTHS, strict=False)):
            size = x.new_empty(1, next_wide, wide, 3, 3)
            drawn = normal([k], size, stream=_DRAWS)[0] * sqrt(2 / (9 * wide))
            self.layers += [nn.Parameter(drawn), nn.Parameter(x.new_zeros(next_wide))]
        self.head = nn.Parameter(x.new_zeros(1, 2 * WIDTHS[-1]))

    def forward(self, x: Tensor) -> Tensor:
        values = Layout.of(x).spread(x)
        for weight, bias in zip(self.layers[::2], self.layers[1::2], strict=True):
            values = F.relu(F.conv2d(values, weight, bias, stride=2, padding=1))
        return F.linear(torch.cat([values.mean((2, 3)), values.amax((2, 3))], 1), self.head)


def guess(logits: Tensor, y: Tensor, trace: Trace) -> Tensor:
    """Return the surrogate's guess of the cost, (B,)."""
    return logits[:, 0]


_LEARNT: WeakKeyDictionary[nn.Module, dict[tuple, nn.Module]] = WeakKeyDictionary()


def _check_values(*, samples: int, steps: int, queries: int) -> None:
    check_plan(samples=samples, steps=steps)
    check_whole(queries=queries)


@register_attack(check_values=_check_values, needs="a calibration split")
def ereba(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    objective: None,
    seeds: Sequence[int],
    samples: int = 500,
    steps: int = 20,
    queries: int = 10,
) -> Tensor:
    """Return inputs (B, ...) that a learnt surrogate holds to be expensive, by queries alone.

    After EREBA (Haque et al., ICSE 2022, arXiv:2202.06084): a network is trained to guess the cost
    of an input, and its gradient leads to expensive ones. The model's gradient is never asked; its
    exact MACs are, for `samples` of the calibration split, each once as it is and once at random
    inside the threat, and for `queries` ascents of the surrogate, the best of which is kept.
    Deviations: MACs, not measured energy; a convolutional surrogate of 14,000 weights; no steps
    to keep the input natural beyond the threat. The surrogate depends on the model, the threat and
    `samples` alone; it is trained once in each process.

    Args:
        seeds: one per sample, for the starts.
        samples: of the calibration split.
        steps: gradients of the surrogate in each ascent.
        queries: ascents, each from another start; one is asked of the model at its end.

    Raises:
        UserError: see `universal`.
    """
    surrogate = _surrogate(model, x, threat, samples)
    cost = get_objective("compute")
    best = x.clone()
    score, _ = judge_all(model, x, y, cost)
    score = score.clone()
    learnt = Objective("guess", value=guess, score=guess, reached=never)
    limits: dict[str, Any] = {"threat": threat, "objective": learnt, "seeds": seeds}
    method = FixedStep(2.5 * threat.eps / steps)
    for query in range(queries):
        candidate = ascend(method, surrogate, x, y, **limits, steps=steps, stream=query).x
        asked = judge_all(model, candidate, y, cost).score
        better = asked > score
        best = torch.where(over_values(better, x), candidate, best)
        score = asked.maximum(score)
    return best


def _surrogate(model: nn.Module, x: Tensor, threat: Threat, samples: int) -> nn.Module:
    info = made_for(model, x)
    ball = (threat.norm, threat.eps, threat.bounds)
    key = (ball, samples, x.dtype, x.device, state_sha256(model.state_dict()))
    known = _LEARNT.setdefault(model, {})
    if key not in known:
        known[key] = _train(model, x, replace(threat, mask=None), calibration(info, samples))
    return known[key]


@torch.no_grad()
def _asked(
    model: nn.Module, x: Tensor, threat: Threat, data: Dataset
) -> list[tuple[Tensor, Tensor]]:
    """Batches (inputs, costs): calibration samples as they are, and at random in the threat."""
    pairs = []
    for positions in data.batches(BATCH):
        inputs = data.stack(positions).to(x)
        ids = data.sample_ids[positions].tolist()
        near = threat.project(inputs + inside(inputs, threat, ids, stream=_DRAWS), inputs)
        labels = torch.zeros(len(inputs), dtype=torch.long, device=x.device)
        for asked in (inputs, near):
            macs = judge_all(model, asked, labels, get_objective("compute")).score
            pairs.append((asked, macs.to(x)))
    return pairs


def _train(model: nn.Module, x: Tensor, threat: Threat, data: Dataset) -> nn.Module:
    pairs = _asked(model, x, threat, data)
    costs = torch.cat([macs for _, macs in pairs])
    mean, std = costs.mean(), costs.std().clamp(min=1)
    surrogate = Surrogate(x)
    optimizer = torch.optim.Adam(surrogate.parameters(), lr=RATE)
    for epoch in range(EPOCHS):
        order = uniform([epoch], x.new_empty(1, len(pairs)), stream=_DRAWS)[0].argsort()
        for k in order.tolist():
            inputs, macs = pairs[k]
            with torch.enable_grad():
                loss = F.mse_loss(surrogate(inputs)[:, 0], (macs - mean) / std)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return surrogate.requires_grad_(False)
