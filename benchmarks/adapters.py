"""What an adapter costs: forward and backward at batch 128, adapted and traced against bare.

    python benchmarks/adapters.py [ROUNDS]

Two foreign networks in two habits, a list of exits and (logits, masks, scores), of 20 and 31 M
MACs. The goal is a ratio of at most 1.05. On a noisy machine the paired ratios spread by more than
an adapter costs, so its seconds are also taken alone: on an input so small that little else is
left.
"""

import sys

import torch
from timing import report
from torch import Tensor, nn
from torch.nn import functional as F

import robustdyn as rd
from robustdyn.bench.timing import interleaved
from robustdyn.primitives import confidence


class Exits(nn.Module):
    """The Shallow-Deep ResNet as research code hands it over: a list of logits."""

    def __init__(self) -> None:
        super().__init__()
        trained = rd.create_model("sdn_resnet")
        self.segments, self.heads = trained.segments, trained.heads

    def forward(self, x: Tensor) -> list[Tensor]:
        outputs = []
        for segment, head in zip(self.segments, self.heads, strict=True):
            x = segment(x)
            outputs.append(head(x))
        return outputs


class Skips(nn.Module):
    """SkipNet as research code hands it over: (logits, masks, scores)."""

    def __init__(self) -> None:
        super().__init__()
        self.net = rd.create_model("skipnet")

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        net, masks, scores, state = self.net, [], [], None
        x = net.stem(x)
        for block, project, bypass in zip(net.blocks, net.projections, net.bypasses, strict=True):
            score, state = net.gate(torch.relu(project(x.mean((2, 3)))), state)
            mask = (score > 0).float()[:, None, None, None]
            x = mask * block(x) + (1 - mask) * bypass(x)
            masks.append(mask)
            scores.append(score)
        return net.head(x.mean((2, 3))), masks, scores


def exits() -> tuple[nn.Module, nn.Module]:
    net = Exits()
    rule = confidence(torch.full((6,), 0.9))
    return net, rd.adapt(
        net,
        heads=[f"heads.{k}" for k in range(6)],
        read=lambda seen: seen.exits(seen.output, rule),
    )


def skips() -> tuple[nn.Module, nn.Module]:
    def read(seen: rd.adapters.Pass) -> Tensor:
        logits, masks, scores = seen.output
        for k, (mask, score) in enumerate(zip(masks, scores, strict=True)):
            seen.decide(f"block{k}", score, kind="skip", keep=mask)
        return logits

    net = Skips()
    regions = {f"net.blocks.{k}": f"block{k}" for k in range(len(net.net.blocks))}
    return net, rd.adapt(net, read=read, regions=regions)


def main(rounds: int) -> None:
    x, y = torch.rand(128, 1, 28, 28), torch.arange(128) % 10

    def plain(net: nn.Module, x: Tensor, y: Tensor) -> None:
        output = net(x)
        every = output if isinstance(output, list) else [output[0]]
        sum(F.cross_entropy(logits, y) for logits in every).backward()

    def adapted(model: nn.Module, x: Tensor, y: Tensor) -> None:
        F.cross_entropy(model(x), y).backward()

    def traced(model: nn.Module, x: Tensor, y: Tensor) -> None:
        with rd.trace() as trace:
            loss = F.cross_entropy(model(x), y)
        loss.backward()
        trace.macs()

    results = {}
    for name, make in (("list of exits", exits), ("masks and scores", skips)):
        net, model = make()
        for kind, run in (("adapted", adapted), ("adapted and traced", traced)):

            def compare(x: Tensor, y: Tensor, rounds: int, run=run, net=net, model=model) -> dict:
                return interleaved(
                    lambda: run(model, x, y), lambda: plain(net, x, y), rounds=rounds
                )

            small = compare(x[:1, :, :8, :8], y[:1], 10 * rounds)
            seconds = small["first_seconds"]["median"] - small["second_seconds"]["median"]
            whole = compare(x, y, rounds)
            results[f"{name}, {kind}"] = {
                "adapter_seconds": seconds,
                "adapter_seconds_of_whole": seconds / whole["second_seconds"]["median"],
            } | whole
    report({"benchmark": "adapters", "batch": 128} | results)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 15)
