"""Model cards: what a trained model does on its test split, clean and attacked."""

import json
import math
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

import robustdyn
from robustdyn.checks import find_flags
from robustdyn.data import Dataset, load_dataset
from robustdyn.errors import UserError
from robustdyn.evaluation import evaluate
from robustdyn.gates import estimator
from robustdyn.metrics import summarize
from robustdyn.registry import ModelSpec, create_model, get_model_spec
from robustdyn.threat import Threat
from robustdyn.trace import trace
from robustdyn.weights import save_card

ATTACKED_SAMPLES = 200


def clean_figures(model: nn.Module, spec: ModelSpec, dataset: str) -> dict[str, Any]:
    """Return what the card of a trained model says but for its training and attacks."""
    return {
        "model": spec.name,
        "dataset": dataset,
        "family": spec.family,
        "paper": spec.paper,
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {"robustdyn": robustdyn.__version__, "torch": torch.__version__},
        **measure(model, load_dataset(dataset, "test")),
    }


def attacked_figures(
    model: nn.Module, dataset: str, *, log: Callable[[str], None] = print
) -> dict[str, Any]:
    """Return what the card of a model of `create_model` says of attacks on some test samples."""
    data = load_dataset(dataset, "test").subset(range(ATTACKED_SAMPLES))
    return {"attacked": measure_attacks(model, data, log=log)}


def renew_card(
    name: str, dataset: str, folder: Path, *, log: Callable[[str], None] = print
) -> dict[str, Any]:
    """Measure the weights of a model in `folder` again, rewrite their card, and return it.

    What the card says of the training stays.

    Raises:
        UserError: if there are no such weights, or no card beside them.
    """
    path = folder / f"{name}.{dataset}.safetensors"
    if not path.with_suffix(".json").is_file():
        raise UserError(
            f"There are no weights with a card at {path}.",
            f"Run `robustdyn train {name} --dataset {dataset}` first, or pass --out.",
        )
    model = create_model(name, dataset, pretrained=path)
    before = json.loads(path.with_suffix(".json").read_text())
    trained = {key: before[key] for key in ("command", "recipe", "seed", "train_seconds")}
    card = trained | clean_figures(model, get_model_spec(name), dataset)
    card |= attacked_figures(model, dataset, log=log)
    save_card(path, card)
    return card


@torch.no_grad()
def measure(model: nn.Module, data: Dataset) -> dict[str, Any]:
    """Return the model card's figures on a data set: accuracy, compute, and the gates' rates.

    `full_accuracy` and `full_macs` are those of full inference: every gate open, the last exit.
    """
    right = full_right = 0
    macs, maxima, bits, most_bits = [], [], [], []
    kept: dict[str, list[Tensor]] = {}
    for x, y in zip(*whole_batches(data), strict=True):
        with trace() as passed:
            right += int((model(x).argmax(1) == y).sum())
        with estimator("full"):
            full_right += int((model(x).argmax(1) == y).sum())
        macs.append(passed.macs())
        maxima.append(torch.full((len(y),), passed.max_macs(), dtype=torch.float64))
        bits.append(passed.bit_operations())
        most_bits.append(torch.full((len(y),), passed.max_bit_operations(), dtype=torch.float64))
        for decision in passed.decisions.values():
            kept.setdefault(decision.name, []).append(decision.rate())
    spent, full = torch.cat(macs), torch.cat(maxima)
    return {
        "test_samples": len(data),
        "accuracy": right / len(data),
        "full_accuracy": full_right / len(data),
        "mean_macs": float(spent.mean()),
        "full_macs": float(full.mean()),
        "mean_bit_operations": float(torch.cat(bits).mean()),
        "full_bit_operations": float(torch.cat(most_bits).mean()),
        "compute": float((spent / full).mean()),
        "compute_std": float((spent / full).std()),
        "gates": {name: float(torch.cat(rates).mean()) for name, rates in kept.items()},
    }


def measure_attacks(
    model: nn.Module, data: Dataset, *, log: Callable[[str], None] = print
) -> dict[str, Any]:
    """Return the model card's figures under attack, linf, and the flags that their rows raise.

    With eps = 1, where every input is allowed, PGD on compute should come near full compute; a
    model that still resists has gates that no input opens, or gates without a gradient.
    """
    slow = {"attack": "pgd", "objective": "compute", "steps": 50}
    attacks: dict[str, tuple[float, dict[str, Any]]] = {
        "noise, 8/255": (8 / 255, {"attack": "noise"}),
        "pgd cross_entropy, 8/255": (8 / 255, slow | {"objective": "cross_entropy"}),
        "pgd compute, 8/255": (8 / 255, slow),
        "pgd compute, unbounded": (1.0, slow),
        "autoattack, 8/255": (8 / 255, {"attack": "autoattack"}),
        "autoslow, 8/255": (8 / 255, {"attack": "autoslow"}),
    }
    found: dict[str, Any] = {"samples": len(data)}
    rows = []
    for name, (eps, params) in attacks.items():
        threat = Threat("linf", eps)
        rows.append(evaluate(model, data, threat=threat, batch_size=len(data), **params))
        (line,) = summarize(rows[-1]).to_dict("records")
        headroom = line["headroom_recovered"]
        found[name] = {
            "robust_accuracy": line["robust_accuracy"],
            "amplification": line["amplification"],
            "headroom_recovered": None if math.isnan(headroom) else headroom,
        }
        spent = "" if math.isnan(headroom) else f", headroom recovered {headroom:.1%}"
        log(f"{name}: robust accuracy {line['robust_accuracy']:.1%}{spent}")
    flags = find_flags(pd.concat(rows, ignore_index=True))
    found["flags"] = [
        {"flag": flag.name, "attack": s.attack, "threat": s.threat, "detail": s.detail}
        for flag in flags
        for s in flag.subjects
    ]
    return found


def whole_batches(data: Dataset, size: int = 500) -> tuple[list[Tensor], list[Tensor]]:
    """Return the inputs and the labels of all samples, in batches of one shape each."""
    groups = data.batches(size)
    return [data.stack(g) for g in groups], [torch.from_numpy(data.labels[g]) for g in groups]
