"""What is left to find beyond autoslow: the worst case of many more runs from other starts.

    python benchmarks/ceiling.py [MODEL] [EPS IN 255THS] [SAMPLES]

Twelve APGD runs of 100 steps, three starts for each of four objectives, and nine on the margin
hinge with a random weight for every gate. If their union with autoslow is no more than autoslow,
no attack of this kind can lead it by much.
"""

import sys

import torch
from timing import report
from torch import Tensor

import robustdyn as rd
from robustdyn.attacks.compute_objectives import by_macs, guarded, margin_of
from robustdyn.attacks.objectives import Objective

OBJECTIVES = ("margin_hinge", "sharp_compute", "compute", "log_reach")
STARTS, WEIGHTS, STEPS = 3, 9, 100


def main(name: str, eps: float, samples: int) -> None:
    model = rd.create_model(name)
    data = rd.load_dataset(model.dataset, "test").subset(range(samples))
    threat = rd.Threat("linf", eps / 255)

    def recovered(attack: str, **params) -> Tensor:
        rows = rd.evaluate(model, data, attack=attack, threat=threat, **params)
        return torch.from_numpy(rd.metrics.headroom_recovered(rows).to_numpy(copy=True))

    ours = recovered("autoslow")
    runs = {
        f"{objective}, start {seed}": recovered("apgd", objective=objective, steps=STEPS, seed=seed)
        for objective in OBJECTIVES
        for seed in range(1, STARTS + 1)
    }
    for seed in range(WEIGHTS):
        runs[f"random weights {seed}"] = recovered(
            "apgd", objective=weighted(seed), steps=STEPS, seed=seed
        )
    union = torch.stack([ours, *runs.values()]).amax(0)
    report(
        {
            "benchmark": "ceiling",
            "model": name,
            "eps": f"{eps:g}/255",
            "samples": samples,
            "autoslow": ours.nanmean().item(),
            "union": union.nanmean().item(),
            "samples_that_gain": int((union > ours + 1e-9).sum()),
            "runs": {key: run.nanmean().item() for key, run in runs.items()},
        }
    )


def weighted(seed: int) -> Objective:
    """Return the margin hinge with exponential random weights to the power 1.5 for the gates."""

    def value(logits: Tensor, y: Tensor, trace: rd.Trace) -> Tensor:
        draw = torch.Generator().manual_seed(seed)
        total = torch.zeros_like(logits[:, 0])
        for share, macs, most in guarded(trace):
            weight = torch.empty(()).exponential_(generator=draw) ** 1.5
            lack = torch.log1p(torch.relu(1 - margin_of(share)))
            lack = lack.flatten(1).mean(1) if lack.dim() > 1 else lack
            part = macs.clamp(min=0.05 * most) / trace.max_macs()
            total = total - weight * part.to(lack.dtype) * lack
        return total

    return by_macs(f"random_weights_{seed}", value)


if __name__ == "__main__":
    given = sys.argv[1:]
    name, eps, samples = [*given, *("skipnet", "4", "32")[len(given) :]]
    main(name, float(eps), int(samples))
