"""One perturbation for all inputs, or one per class: crafted on one split, applied to another."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustdyn.attacks.ascent import aimed
from robustdyn.attacks.ball import steepest
from robustdyn.attacks.look import judge, look
from robustdyn.attacks.objectives import Objective, get_objective
from robustdyn.attacks.parameters import check_flag, check_step_size, check_whole
from robustdyn.attacks.patch import window_mask
from robustdyn.attacks.registry import register_attack
from robustdyn.attacks.rows import over_values
from robustdyn.data import Dataset, DatasetInfo, get_info, load_dataset
from robustdyn.errors import UserError
from robustdyn.gates import in_force
from robustdyn.threat import Threat
from robustdyn.weights import state_sha256

SPLIT = "calibration"
_BATCH = 64
_MOMENTUM = 0.9


@dataclass(frozen=True)
class Plan:
    """How a perturbation is crafted.

    Attributes:
        samples: the first of the calibration split.
        steps: gradients of each of these samples.
        step_size: in units of the input; None is 2.5 eps / steps, of a patch 2.5 / steps of the
            whole range.
        per_class: one perturbation for each class, instead of one for all.
        area: of a patch in the corner that replaces what is there; None adds to all of the input.
    """

    samples: int
    steps: int
    step_size: float | None = None
    per_class: bool = False
    area: float | None = None


def check_plan(*, samples: int, steps: int, step_size: float | None = None) -> None:
    """Check how a perturbation is to be crafted.

    Raises:
        UserError: if a number is out of range.
    """
    check_whole(samples=samples, steps=steps)
    check_step_size(step_size)


def _check_values(*, samples: int, steps: int, step_size: float | None, per_class: bool) -> None:
    check_plan(samples=samples, steps=steps, step_size=step_size)
    check_flag(per_class=per_class)


@register_attack(
    objectives=("cross_entropy", "*"), check_values=_check_values, needs="a calibration split"
)
def universal(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: Threat,
    objective: "str | Objective" = "cross_entropy",
    seeds: Sequence[int],
    samples: int = 200,
    steps: int = 30,
    step_size: float | None = None,
    per_class: bool = False,
) -> Tensor:
    """Return inputs (B, ...) that all carry the same perturbation, or that of their class.

    Moosavi-Dezfooli et al. 2017, arXiv:1610.08401; for compute, and by class, DeepSloth (Hong et
    al. 2021, arXiv:2010.02432). The perturbation is crafted on the calibration split of the data
    set that the model was made for, so inputs of the test split are held out. It depends on the
    model, the threat and the parameters alone, not on the inputs or their seeds: it is made once in
    each process and is the same in every one. Momentum steps along the mean over the samples of
    gradients of equal length; the best mean score is kept. In sequences it repeats after the
    longest calibration sequence. Deviation: signed gradients, as in DeepSloth, not DeepFool.

    Args:
        model: with an attribute `dataset`, as `create_model` makes it.
        y: (B,) labels; they choose the perturbation where there is one for each class.
        threat: its mask, if it has one, must be one for all samples.
        samples: the first of the calibration split.
        steps: gradients of each sample.
        step_size: in units of the input; by default 2.5 eps / steps.
        per_class: one perturbation for each class.

    Raises:
        UserError: if the model names no data set with a calibration split, or the mask differs
            between samples.
    """
    plan = Plan(samples, steps, step_size, per_class)
    change = crafted(model, x, plan, threat=threat, objective=objective)
    return apply(change, x, y if per_class else torch.zeros_like(y), plan, threat)


def apply(change: Tensor, x: Tensor, kinds: Tensor, plan: Plan, threat: Threat) -> Tensor:
    """Return inputs (B, ...) with the perturbations `change` (K, ...) of their kinds (B,)."""
    own = change[kinds]
    if own.shape[1:] != x.shape[1:]:  # sequences of another length
        own = own[:, torch.arange(x.shape[1], device=x.device) % change.shape[1]]
    if plan.area is None:
        return threat.project(x + own, x)
    return threat.project(torch.where(window_mask(x, plan.area, "corner"), own, x), x)


_CRAFTED: WeakKeyDictionary[nn.Module, dict[tuple, Tensor]] = WeakKeyDictionary()


def crafted(
    model: nn.Module, x: Tensor, plan: Plan, *, threat: Threat, objective: "str | Objective"
) -> Tensor:
    """Return perturbations (K, ...), one or one per class, crafted now or earlier in this process.

    `x` (B, ...) only tells their device, type and shape.

    Raises:
        UserError: see `universal`.
    """
    info = made_for(model, x)
    _check_mask(threat, x, varying=info.input_shape[0] is None)
    mask = None if threat.mask is None else state_sha256({"mask": threat.mask})
    limits = (threat.norm, threat.eps, threat.bounds, mask)
    place = (x.dtype, x.device, objective, in_force())
    key = (plan, limits, place, state_sha256(model.state_dict()))
    known = _CRAFTED.setdefault(model, {})
    if key not in known:
        data = calibration(info, plan.samples)
        known[key] = _craft(model, data, x, plan, threat, get_objective(objective))
    return known[key]


def _check_mask(threat: Threat, x: Tensor, *, varying: bool) -> None:
    shape = (1,) * x.dim() if threat.mask is None else tuple(threat.mask.shape)
    padded = (1,) * (x.dim() - len(shape)) + shape
    if padded[0] > 1 or (varying and padded[1] > 1):
        raise UserError(
            "A universal perturbation cannot keep to a mask for each sample, or for each time step "
            "where lengths vary.",
            "Give the threat one mask for all, or choose the attack 'apgd'.",
        )


def made_for(model: nn.Module, x: Tensor) -> DatasetInfo:
    """Return the data set that the model was made for.

    Raises:
        UserError: if the model names none, or its inputs are not shaped as x (B, ...).
    """
    name = getattr(model, "dataset", None)
    if not isinstance(name, str):
        raise UserError(
            f"The model {type(model).__name__} does not say what data it was made for.",
            "Make it with robustdyn.create_model, or set its attribute `dataset` to a name.",
        )
    info = get_info(name)
    shape = info.input_shape
    fits = len(shape) == x.dim() - 1
    if not fits or any(a not in (None, b) for a, b in zip(shape, x.shape[1:], strict=True)):
        raise UserError(
            f"The inputs are {tuple(x.shape[1:])}, those of '{name}' are {shape}.",
            "Attack the model with inputs of its own data set.",
        )
    return info


def calibration(info: DatasetInfo, count: int) -> Dataset:
    """Return the first `count` samples of the calibration split."""
    data = load_dataset(info.name, SPLIT)
    return data.subset(range(min(count, len(data))))


def _craft(
    model: nn.Module,
    data: Dataset,
    x: Tensor,
    plan: Plan,
    threat: Threat,
    objective: Objective,
) -> Tensor:
    parts = []
    for positions in data.batches(_BATCH):
        inputs = data.stack(positions).to(x)
        labels = torch.from_numpy(data.labels[positions]).to(x.device)
        kinds = labels if plan.per_class else torch.zeros_like(labels)
        parts.append((inputs, aimed(model, inputs, labels, objective), kinds))
    count = data.info.num_classes if plan.per_class else 1
    longest = max((inputs for inputs, _, _ in parts), key=lambda inputs: inputs.shape[1])
    low, high = threat.bounds
    change = longest.new_full(
        (count, *longest.shape[1:]), 0 if plan.area is None else (low + high) / 2
    )
    size = plan.step_size or 2.5 / plan.steps * (threat.eps if plan.area is None else high - low)
    best, top = change, x.new_full((count,), -torch.inf, dtype=torch.float64)
    gathered = torch.zeros_like(change)
    for step in range(plan.steps + 1):
        total, score, each = torch.zeros_like(change), torch.zeros_like(top), torch.zeros_like(top)
        for inputs, labels, kinds in parts:
            here = apply(change, inputs, kinds, plan, threat)
            if step == plan.steps:
                verdict = judge(model, here, labels, objective)
            else:
                seen = look(
                    *(model, here, labels, objective),
                    price=torch.ones_like(inputs.flatten(1)[:, 0]),
                    seeds=range(len(inputs)),
                    stream=step,
                    eot=1,
                )
                verdict = seen.verdict
                own = F.one_hot(kinds, count).T.to(inputs)  # (K, n)
                pull = own @ steepest(seen.gradient, "l2").flatten(1)
                total[:, : inputs.shape[1]] += pull.reshape(count, *inputs.shape[1:])
            own = F.one_hot(kinds, count).T.double()
            score, each = score + own @ verdict.score, each + own.sum(1)
        mean = score / each.clamp(min=1)
        better = mean > top
        best, top = torch.where(over_values(better, best), change, best), mean.maximum(top)
        gathered = _MOMENTUM * gathered + total
        change = _moved(change, size * steepest(gathered, threat.norm), plan, threat)
    return best


def _moved(change: Tensor, stride: Tensor, plan: Plan, threat: Threat) -> Tensor:
    """The next perturbations: contents within the bounds, or changes within the ball."""
    low, high = threat.bounds
    if plan.area is not None:
        return (change + stride).clamp(low, high)
    ball = replace(threat, bounds=(low - high, high - low))
    return ball.project(change + stride, torch.zeros_like(change))
