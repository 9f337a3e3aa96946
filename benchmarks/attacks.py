"""Our PGD against torchattacks' PGD: same model, same steps, cross-entropy, interleaved.

    python benchmarks/attacks.py [ROUNDS]

Twice: at 8/255, where ours lets samples go as soon as they are wrong, and at an eps so small that
no sample turns wrong and both do all steps. The goal is a median ratio of at most 1.0.
"""

import sys

import torch
import torchattacks
from timing import interleaved, report

import robustdyn as rd
from robustdyn import attacks

STEPS = 10


def main(rounds: int) -> None:
    model = rd.create_model("resnet")
    data = rd.load_dataset("fashion_mnist", "test")
    x, y = data.stack(range(128)), torch.from_numpy(data.labels[:128])
    right = model(x).argmax(1) == y  # a wrong sample would leave our batch at once
    x, y = x[right], y[right]
    results = {}
    for name, eps in (("eps 8/255", 8 / 255), ("no sample turns wrong", 1e-5)):
        threat = rd.Threat("linf", eps)
        theirs = torchattacks.PGD(model, eps=eps, alpha=eps / 4, steps=STEPS)

        def ours(threat: rd.Threat = threat) -> torch.Tensor:
            pgd = attacks.get("pgd")
            return pgd(model, x, y, threat=threat, steps=STEPS, step_size=threat.eps / 4)

        results[name] = interleaved(ours, lambda theirs=theirs: theirs(x, y), rounds=rounds)
    report({"benchmark": "pgd against torchattacks", "steps": STEPS, "batch": len(x)} | results)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 11)
