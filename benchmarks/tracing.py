"""What tracing costs: forward and backward of a 40 M-MAC ResNet at batch 128, with and without.

    python benchmarks/tracing.py [ROUNDS]

The goal is a median ratio of at most 1.05.
"""

import sys

import torch
from timing import interleaved, report
from torch.nn import functional as F

import robustdyn as rd
from robustdyn.models.resnet import ResNet


def main(rounds: int) -> None:
    model = ResNet(10, 3, (0.5,) * 3, (0.25,) * 3, blocks=3).eval()
    x = torch.rand(128, 3, 32, 32)
    y = torch.arange(128) % 10

    def plain() -> None:
        F.cross_entropy(model(x), y).backward()

    def traced() -> None:
        with rd.trace() as trace:
            loss = F.cross_entropy(model(x), y)
        loss.backward()
        trace.macs()

    with rd.trace() as trace:
        model(x[:1])
    result = interleaved(traced, plain, rounds=rounds)
    report({"benchmark": "tracing", "macs": trace.max_macs(), "batch": 128} | result)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 15)
