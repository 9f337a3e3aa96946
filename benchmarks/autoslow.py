"""How long autoslow takes on many samples of the early-exit network, and what it recovers.

    python benchmarks/autoslow.py [SAMPLES] [EPS IN 255THS] [MODEL]

The goal is under ten minutes for 1,000 Fashion-MNIST samples of sdn_resnet on two cores.
"""

import sys
import time

import torch
from timing import report

import robustdyn as rd


def main(samples: int, eps: float, model: str) -> None:
    network = rd.create_model(model)
    data = rd.load_dataset(network.dataset, "test").subset(range(samples))
    started = time.perf_counter()
    rows = rd.evaluate(network, data, attack="autoslow", threat=rd.Threat("linf", eps / 255))
    seconds = time.perf_counter() - started
    report(
        {
            "benchmark": "autoslow",
            "model": model,
            "samples": samples,
            "eps": f"{eps:g}/255",
            "threads": torch.get_num_threads(),
            "seconds": round(seconds, 1),
            "headroom_recovered": round(rd.metrics.headroom_recovered(rows).mean(), 4),
            "at_maximum": int((rows["adv_macs"] == rows["max_macs"]).sum()),
        }
    )


if __name__ == "__main__":
    given = sys.argv[1:]
    samples, eps, model = [*given, *("1000", "8", "sdn_resnet")[len(given) :]]
    main(int(samples), float(eps), model)
