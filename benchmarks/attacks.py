"""Our PGD and APGD against torchattacks': same model, same batch, cross-entropy, interleaved.

    python benchmarks/attacks.py [ROUNDS] [STEPS]

The figure is the median ratio of seconds per gradient, ours / theirs, all of an attack's work
included; the goal is at most 1.0. What is counted:

- PGD: both compute STEPS gradients. Ours looks at STEPS + 1 iterates to return the best as judged
  by the hard model; torchattacks returns the last unseen.
- APGD: ours computes STEPS gradients and judges the last iterate by a forward pass; torchattacks
  computes STEPS + 1 and makes a forward pass for the clean accuracy first.

Twice: at an eps so small that no sample turns wrong and both do all their work, which is the fair
comparison; and at 8/255, where ours lets samples go as soon as they are wrong.
"""

import sys

import torch
import torchattacks
from timing import interleaved, report

import robustdyn as rd
from robustdyn import attacks


def main(rounds: int, steps: int) -> None:
    model = rd.create_model("resnet")
    data = rd.load_dataset("fashion_mnist", "test")
    x, y = data.stack(range(128)), torch.from_numpy(data.labels[:128])
    right = model(x).argmax(1) == y  # a wrong sample would leave our batch at once
    x, y = x[right], y[right]
    results = {}
    for name, eps in (("no sample turns wrong", 1e-5), ("eps 8/255", 8 / 255)):
        threat = rd.Threat("linf", eps)

        def pgd(threat: rd.Threat = threat) -> torch.Tensor:
            size = threat.eps / 4
            return attacks.get("pgd")(model, x, y, threat=threat, steps=steps, step_size=size)

        def apgd(threat: rd.Threat = threat) -> torch.Tensor:
            return attacks.get("apgd")(model, x, y, threat=threat, steps=steps)

        theirs = torchattacks.PGD(model, eps=eps, alpha=eps / 4, steps=steps)
        auto = torchattacks.APGD(model, eps=eps, steps=steps, n_restarts=1)
        pairs = (("pgd", pgd, theirs, 1.0), ("apgd", apgd, auto, (steps + 1) / steps))
        for attack, ours, other, gradients in pairs:
            timed = interleaved(ours, lambda other=other: other(x, y), rounds=rounds)
            per_gradient = {k: v * gradients for k, v in timed["ratio"].items()}
            results[f"{attack}, {name}"] = {"ratio_per_gradient": per_gradient} | timed
    report({"benchmark": "attacks against torchattacks", "steps": steps, "batch": len(x)} | results)


if __name__ == "__main__":
    arguments = [int(argument) for argument in sys.argv[1:]]
    main(*(arguments + [11, 10][len(arguments) :]))
