"""How far the gates of a model open as eps grows: python benchmarks/openness.py [MODEL] [SAMPLES].

A model that resists an attack on its compute at a small eps either has gates without a usable
gradient or needs a larger change. This tells them apart: the mean headroom recovered by 100 steps
of apgd at growing eps, for three objectives and for the best of them on every sample. If a large
eps reaches full inference, the gradient is there.
"""

import sys

import torch
from timing import report

import robustdyn as rd

OBJECTIVES = ("margin_hinge", "log_reach", "sharp_compute")
EPS = {"8/255": 8 / 255, "16/255": 16 / 255, "32/255": 32 / 255, "64/255": 64 / 255, "1": 1.0}


def main(name: str, samples: int) -> None:
    model = rd.create_model(name)
    data = rd.load_dataset(model.dataset, "test").subset(range(samples))
    recovered: dict[str, dict[str, float]] = {}
    for text, eps in EPS.items():
        runs = []
        for objective in OBJECTIVES:
            params = {"attack": "apgd", "objective": objective, "steps": 100}
            rows = rd.evaluate(model, data, threat=rd.Threat("linf", eps), **params)
            runs.append(torch.from_numpy(rd.metrics.headroom_recovered(rows).to_numpy(copy=True)))
        each = dict(zip(OBJECTIVES, runs, strict=True)) | {"best": torch.stack(runs).amax(0)}
        recovered[text] = {key: round(run.nanmean().item(), 3) for key, run in each.items()}
    report({"benchmark": "openness", "model": name, "samples": samples, "recovered": recovered})


if __name__ == "__main__":
    given = sys.argv[1:]
    main(given[0] if given else "blockdrop", int(given[1]) if len(given) > 1 else 24)
