"""Our PGD and APGD against torchattacks': same model, same batch, cross-entropy, interleaved.

    python benchmarks/attacks.py [ROUNDS] [STEPS]

Two ratios, ours / theirs, of all of an attack's time; the goal is a median of at most 1.0.
`per_pass` divides by the inputs that the model saw, `per_gradient` by the gradients taken:

            ours                             torchattacks'
    PGD     STEPS gradients, 1 pass more     STEPS gradients; the last iterate is returned unseen
    APGD    STEPS gradients, 1 pass more     STEPS + 1 gradients, 1 pass before them

Our pass more judges the last iterate, so PGD's ratio per gradient falls to its ratio per pass as
STEPS grows. Twice: at an eps so small that no sample turns wrong and both do all their work, which
is the fair comparison; and at 8/255, where ours lets samples go as soon as they are wrong.
"""

import sys

import torch
import torchattacks
from timing import report

import robustdyn as rd
from robustdyn import attacks
from robustdyn.bench.timing import interleaved


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
        # (name, ours, theirs, their gradients, their passes); ours are steps and steps + 1
        pairs = (("pgd", pgd, theirs, steps, steps), ("apgd", apgd, auto, steps + 1, steps + 2))
        for attack, ours, other, gradients, passes in pairs:
            timed = interleaved(ours, lambda other=other: other(x, y), rounds=rounds)
            results[f"{attack}, {name}"] = {
                "per_gradient": {k: v * gradients / steps for k, v in timed["ratio"].items()},
                "per_pass": {k: v * passes / (steps + 1) for k, v in timed["ratio"].items()},
            } | timed
    report({"benchmark": "attacks against torchattacks", "steps": steps, "batch": len(x)} | results)


if __name__ == "__main__":
    arguments = [int(argument) for argument in sys.argv[1:]]
    main(*(arguments + [11, 10][len(arguments) :]))
