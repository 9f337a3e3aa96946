"""Evaluation: attack a batch, check the attack's word, measure both passes: a row per sample."""

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustdyn import attacks
from robustdyn.attacks.curves import recording, still_rising
from robustdyn.attacks.draws import sample_seeds
from robustdyn.attacks.objectives import Objective, Value
from robustdyn.attacks.registry import Attack, deployed
from robustdyn.attacks.rows import filled_up
from robustdyn.data import Dataset, load_dataset
from robustdyn.diagnosis import diagnose, gradients_asked
from robustdyn.errors import UserError
from robustdyn.gates import estimator as use_estimator
from robustdyn.registry import create_model, fitted_on
from robustdyn.threat import Threat, distance
from robustdyn.trace import trace

if TYPE_CHECKING:
    from robustdyn.suite import Cell

Progress = Callable[[int], None]
# Attacks whose samples influence each other always see the same batches, whatever the batch size.
COUPLED_BATCH = 200
MAPPED_SAMPLES = 8  # of each evaluation: their images and mask maps are kept for the report


def evaluate(
    model: nn.Module,
    data: Dataset,
    *,
    attack: str | Attack = "pgd",
    threat: Threat,
    objective: str | Objective | Value | None = None,
    estimator: str | None = None,
    seed: int = 0,
    batch_size: int = 64,
    progress: Progress | None = None,
    **params: Any,
) -> pd.DataFrame:
    """Attack every sample of `data` and return one row per sample, in the order of `data`.

    Args:
        model: maps inputs in [0, 1] to logits (B, K); one of ours, or any nn.Module.
        data: see `load_dataset`.
        attack: a name, see `attacks.get`, or an Attack; one that is crafted on another model (see
            `attacks.crafted_on`) adds the column `source`.
        threat: what may change.
        objective: what to maximise: a name, or a function (logits, y, trace) -> (B,); by default
            the attack's own.
        estimator: the gradient estimator of the gates during the attack, by default the hard
            forward pass with a straight-through gradient.
        seed: with a sample's id, decides its random numbers.
        batch_size: samples that run at once; does not change the rows.
        progress: called with the number of samples just finished.
        params: the attack's own.

    Raises:
        UserError: if the attack or a parameter is unknown, or the model does not return logits.
    """
    method = attacks.get(attack) if isinstance(attack, str) else attack
    if objective is None or isinstance(objective, str):
        method.check(objective or "", params)
        name = objective or next(iter(method.objectives), "")
    else:
        objective = chosen = attacks.get_objective(objective)
        name = chosen.name
    spec = getattr(model, "spec", None)
    constant = {
        "model": spec.name if spec else type(model).__name__,
        "family": spec.family if spec else "",
        "static": bool(spec.static_compute) if spec else False,
        "dataset": data.info.name,
        "split": data.split,
        "attack": method.name,
        "objective": name,
        "estimator": estimator or "",
        "norm": threat.norm,
        "eps": float(threat.eps),
        "seed": seed,
        "params": _written(method, params),
        "fitted_on": fitted_on(model),
    }
    size = COUPLED_BATCH if method.batch_coupled else batch_size
    groups = data.batches(size)
    parts = []
    led = False
    with deployed(model):
        for positions in groups:
            batch = _Batch.of(data, positions, seed)
            clean = _measure(model, batch.x)
            doubts = diagnose(model, batch.x, batch.y, seen=clean.logits, macs=clean.macs)
            with (
                use_estimator(estimator) if estimator else nullcontext(),
                recording() as curves,
                gradients_asked(model) as asked,
            ):
                x_adv = method(
                    model,
                    batch.x,
                    batch.y,
                    threat=threat,
                    objective=objective,
                    seeds=batch.seeds,
                    **params,
                ).to(batch.x)
            adversarial = _measure(model, x_adv)
            led = led or any(asked)
            columns = _columns(batch, x_adv, clean, adversarial, threat)
            columns |= doubts | {"still_rising": still_rising(curves, batch.seeds)}
            parts.append(pd.DataFrame(columns).head(len(positions)))
            if progress is not None:
                progress(len(positions))
    order = np.argsort(np.concatenate(groups))
    measured = pd.concat(parts, ignore_index=True).iloc[order].reset_index(drop=True)
    constant["uses_gradient"] = led
    if method.source:
        constant["source"] = method.source
    return pd.DataFrame(constant, index=measured.index).join(measured)


def _written(method: Attack, params: dict[str, Any]) -> str:
    """Return the parameters as JSON; ours with their defaults, a library's may be objects."""
    known = params if ":" in method.name else method.params | params
    return json.dumps(known, sort_keys=True, default=str)


def evaluate_cell(
    cell: "Cell", *, batch_size: int, progress: Progress | None = None
) -> pd.DataFrame:
    """Return the rows of one cell: build its model and its source, load its samples, evaluate."""
    model = create_model(cell.model, cell.dataset)
    method = attacks.get(cell.attack)
    if cell.source:
        is_own = cell.source == cell.model
        source = model if is_own else create_model(cell.source, cell.dataset)
        method = attacks.crafted_on(source, method, cell.source)
    data = load_dataset(cell.dataset, cell.split)
    return evaluate(
        model,
        data.subset(range(cell.start, cell.stop)),
        attack=method,
        threat=Threat(cell.norm, cell.eps),
        objective=cell.objective or None,
        estimator=cell.estimator or None,
        seed=cell.seed,
        batch_size=batch_size,
        progress=progress,
        **dict(cell.attack_params),
    )


@dataclass(frozen=True)
class _Batch:
    """Samples of one shape; a small batch is filled up by repeating samples (see filled_up)."""

    x: Tensor  # (B, ...)
    y: Tensor  # (B,)
    sample_ids: np.ndarray  # (B,)
    seeds: list[int]
    mapped: np.ndarray  # (B,) bool: the samples whose maps are kept

    @staticmethod
    def of(data: Dataset, positions: np.ndarray, seed: int) -> "_Batch":
        filled = positions[filled_up(torch.arange(len(positions))).numpy()]
        ids = data.sample_ids[filled]
        return _Batch(
            data.stack(filled),
            torch.from_numpy(data.labels[filled]),
            ids,
            sample_seeds(seed, ids),
            filled < MAPPED_SAMPLES,
        )


@dataclass(frozen=True)
class _Measured:
    """What the hard model did with a batch."""

    logits: Tensor  # (B, K)
    pred: Tensor  # (B,)
    macs: Tensor  # (B,)
    expected_macs: Tensor  # (B,)
    max_macs: float
    bit_operations: Tensor  # (B,)
    max_bit_operations: float
    exit: Tensor  # (B,), -1 without exits
    gates: dict[str, Tensor]  # name -> mean keep (B,)
    kinds: list[str]
    map: Tensor | None  # (B, h, w): mean keep over the spatial gates


@torch.no_grad()
def _measure(model: nn.Module, x: Tensor) -> _Measured:
    with use_estimator("straight_through"), trace() as passed:
        logits = model(x)
    _check_logits(model, logits, len(x))
    taken = [exit.taken for exit in passed.exits]
    masks = [d.kept.float() for d in passed.decisions.values() if d.kind == "position"]
    return _Measured(
        logits=logits,
        pred=logits.argmax(1),
        macs=passed.macs(),
        expected_macs=passed.expected_macs(),
        max_macs=passed.max_macs(),
        bit_operations=passed.bit_operations(),
        max_bit_operations=passed.max_bit_operations(),
        exit=torch.stack(taken).int().argmax(0) if taken else torch.full((len(x),), -1),
        gates={name: decision.rate() for name, decision in passed.decisions.items()},
        kinds=[decision.kind for decision in passed.decisions.values()],
        map=_mean_map(masks, x) if masks else None,
    )


def _check_logits(model: nn.Module, logits: Any, count: int) -> None:
    if isinstance(logits, Tensor) and logits.dim() == 2 and len(logits) == count:
        return
    what = tuple(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
    raise UserError(
        f"The model {type(model).__name__} returned {what} for {count} samples, not logits (B, K).",
        "Let forward() return the logits alone; collect the rest with robustdyn.trace().",
    )


def _mean_map(masks: list[Tensor], x: Tensor) -> Tensor:
    """The mean over masks (B, 1, h, w), each brought to the size of the images, (B, H, W)."""
    sized = [F.interpolate(mask, x.shape[2:], mode="nearest") for mask in masks]
    return torch.cat(sized, 1).mean(1)


def _columns(
    batch: _Batch, x_adv: Tensor, clean: _Measured, adversarial: _Measured, threat: Threat
) -> dict[str, Any]:
    count = len(batch.y)
    columns: dict[str, Any] = {
        "sample_id": batch.sample_ids,
        "label": batch.y.numpy(),
        "clean_pred": clean.pred.numpy(),
        "adv_pred": adversarial.pred.numpy(),
        "clean_macs": clean.macs.numpy(),
        "adv_macs": adversarial.macs.numpy(),
        "max_macs": np.full(count, clean.max_macs),
        "clean_bit_operations": clean.bit_operations.numpy(),
        "adv_bit_operations": adversarial.bit_operations.numpy(),
        "max_bit_operations": np.full(count, clean.max_bit_operations),
        "clean_expected_macs": clean.expected_macs.double().numpy(),
        "adv_expected_macs": adversarial.expected_macs.double().numpy(),
        "linf": distance(x_adv, batch.x, "linf").double().numpy(),
        "l2": distance(x_adv, batch.x, "l2").double().numpy(),
        "valid": threat.is_met(x_adv, batch.x).numpy(),
        "clean_exit": clean.exit.numpy(),
        "adv_exit": adversarial.exit.numpy(),
        "gate_names": [list(clean.gates)] * count,
        "gate_kinds": [clean.kinds] * count,
        "clean_gates": _per_sample(clean.gates, count),
        "adv_gates": _per_sample(adversarial.gates, count),
    }
    mapped = batch.mapped if clean.map is not None else np.zeros(count, bool)
    columns |= {
        "image": _kept(batch.x, mapped),
        "adv_image": _kept(x_adv, mapped),
        "image_shape": _shapes(batch.x, mapped),
        "clean_map": _kept(clean.map, mapped),
        "adv_map": _kept(adversarial.map, mapped),
        "map_shape": _shapes(clean.map, mapped),
    }
    return columns


def _per_sample(gates: dict[str, Tensor], count: int) -> list[list[float]]:
    return torch.stack(list(gates.values()), 1).tolist() if gates else [[] for _ in range(count)]


def _kept(values: Tensor | None, mapped: np.ndarray) -> list[list[float] | None]:
    return [
        values[row].flatten().tolist() if values is not None and keep else None
        for row, keep in enumerate(mapped)
    ]


def _shapes(values: Tensor | None, mapped: np.ndarray) -> list[list[int] | None]:
    return [list(values.shape[1:]) if values is not None and keep else None for keep in mapped]
