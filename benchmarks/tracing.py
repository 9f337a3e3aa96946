"""What tracing costs: forward and backward of a 40 M-MAC ResNet at batch 128, with and without.

    python benchmarks/tracing.py [ROUNDS]

The goal is a ratio of at most 1.05. On a noisy machine the paired ratios spread by more than
tracing costs, so its seconds are also taken alone: on an input so small that little else is left.
"""

import sys

import torch
from timing import report
from torch.nn import functional as F

import robustdyn as rd
from robustdyn.bench.timing import interleaved
from robustdyn.models.resnet import ResNet


def main(rounds: int) -> None:
    model = ResNet(10, 3, (0.5,) * 3, (0.25,) * 3, blocks=3).eval()
    x = torch.rand(128, 3, 32, 32)
    y = torch.arange(128) % 10

    def plain(x: torch.Tensor, y: torch.Tensor) -> None:
        F.cross_entropy(model(x), y).backward()

    def traced(x: torch.Tensor, y: torch.Tensor) -> None:
        with rd.trace() as trace:
            loss = F.cross_entropy(model(x), y)
        loss.backward()
        trace.macs()

    def compare(x: torch.Tensor, y: torch.Tensor, rounds: int) -> dict:
        return interleaved(lambda: traced(x, y), lambda: plain(x, y), rounds=rounds)

    with rd.trace() as trace:
        model(x[:1])
    small = compare(x[:1, :, :8, :8], y[:1], 10 * rounds)
    seconds = small["first_seconds"]["median"] - small["second_seconds"]["median"]
    result = compare(x, y, rounds)
    alone = {
        "trace_seconds": seconds,
        "trace_seconds_of_whole": seconds / result["second_seconds"]["median"],
    }
    report({"benchmark": "tracing", "macs": trace.max_macs(), "batch": 128} | alone | result)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 15)
