"""Model cards: what a trained model does on its test split, clean and attacked."""

import math
from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor, nn

import robustdyn
from robustdyn.data import Dataset, load_dataset
from robustdyn.evaluation import evaluate
from robustdyn.gates import estimator
from robustdyn.metrics import summarize
from robustdyn.registry import ModelSpec
from robustdyn.threat import Threat
from robustdyn.trace import trace

ATTACKED_SAMPLES = 200


def model_card_figures(model: nn.Module, spec: ModelSpec, dataset: str) -> dict[str, Any]:
    """Return the card of a trained model on a dataset, but for how it was trained."""
    test = load_dataset(dataset, "test")
    return {
        "model": spec.name,
        "dataset": dataset,
        "family": spec.family,
        "paper": spec.paper,
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {"robustdyn": robustdyn.__version__, "torch": torch.__version__},
        **measure(model, test),
        "attacked": measure_attacks(model, test.subset(range(ATTACKED_SAMPLES))),
    }


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


def measure_attacks(model: nn.Module, data: Dataset) -> dict[str, Any]:
    """Return the model card's figures under attack, linf: noise, and PGD on each objective.

    With eps = 1, where every input is allowed, PGD on compute should come near full compute; a
    model that still resists has gates that no input opens, or gates without a gradient.
    """
    slow = {"attack": "pgd", "objective": "compute", "steps": 50}
    wrong = slow | {"objective": "cross_entropy"}
    attacks: dict[str, tuple[float, dict[str, Any]]] = {
        "noise, 8/255": (8 / 255, {"attack": "noise"}),
        "pgd cross_entropy, 8/255": (8 / 255, wrong),
        "pgd compute, 8/255": (8 / 255, slow),
        "pgd compute, unbounded": (1.0, slow),
    }
    figures: dict[str, Any] = {"samples": len(data)}
    for name, (eps, params) in attacks.items():
        threat = Threat("linf", eps)
        (line,) = summarize(evaluate(model, data, threat=threat, **params)).to_dict("records")
        headroom = line["headroom_recovered"]
        figures[name] = {
            "robust_accuracy": line["robust_accuracy"],
            "amplification": line["amplification"],
            "headroom_recovered": None if math.isnan(headroom) else headroom,
        }
    return figures


def whole_batches(data: Dataset, size: int = 500) -> tuple[list[Tensor], list[Tensor]]:
    """Return the inputs and the labels of all samples, in batches of one shape each."""
    groups = data.batches(size)
    return [data.stack(g) for g in groups], [torch.from_numpy(data.labels[g]) for g in groups]
