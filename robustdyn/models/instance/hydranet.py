"""HydraNet: branches for groups of similar classes, chosen by a gate (Mullapudi et al. 2018)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustdyn.losses import described
from robustdyn.models.layers import BasicBlock, Stem, conv_bn, pooled
from robustdyn.primitives import run_paths
from robustdyn.recipe import Calibrate, Loss, Recipe
from robustdyn.registry import register_model
from robustdyn.trace import Trace, decide

# The subtask of each class of Fashion-MNIST: shirts, knitwear and coats, trousers and dresses, and
# the rest (shoes and bags). Classes within one look alike.
SUBTASKS = (0, 2, 1, 2, 1, 3, 0, 3, 3, 3)
TRAINING_THRESHOLD = 0.1


class Gate(nn.Module):
    """Log-odds (B, branches) of each branch's softmax probability, from the stem's features."""

    def __init__(self, channels: int, hidden: int, branches: int):
        super().__init__()
        self.conv = conv_bn(channels, hidden, stride=2)
        self.linear = nn.Linear(hidden, branches)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.linear(pooled(F.relu(self.conv(x)))).float()
        own = torch.eye(logits.shape[1], dtype=torch.bool, device=logits.device)
        others = logits[:, None, :].masked_fill(own, float("-inf")).logsumexp(2)
        return logits - others


class HydraNet(nn.Module):
    """A stem, branches that specialise on subtasks, a gate that picks some, and a combiner.

    The gate reads the stem's features; the combiner is linear in the branches' pooled outputs,
    side by side, zero where a branch does not run. Deviations from the paper: a branch runs if its
    probability is above a threshold below 1 / branches instead of if it is among the best k, so
    that a sure gate runs one branch and an unsure one several; subtasks are given, not clustered.
    """

    threshold: Tensor

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        mean: Sequence[float],
        std: Sequence[float],
        widths: Sequence[int] = (16, 32),
        branches: int = 4,
    ):
        super().__init__()
        width = widths[1]
        self.stem = nn.Sequential(
            Stem(in_channels, widths[0], mean, std, stride=2), BasicBlock(widths[0], widths[1], 2)
        )
        self.gate = Gate(width, 16, branches)
        self.branches = nn.ModuleList(
            nn.Sequential(BasicBlock(width, width, 2), BasicBlock(width, width))
            for _ in range(branches)
        )
        self.combiner = nn.Linear(branches * width, num_classes)
        self.register_buffer("threshold", torch.tensor(TRAINING_THRESHOLD))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        gate = decide("branches", self.gate(x) - torch.logit(self.threshold), kind="path")
        heads = [pooled(y) for y in run_paths(gate, list(self.branches), x)]
        return self.combiner(torch.cat(heads, 1))


@described
def subtask_supervision(*, subtasks: Sequence[int], weight: float) -> Loss:
    """Return CE + weight * CE of the gate, whose right answer is the subtask of the label."""

    def loss(logits: Tensor, y: Tensor, trace: Trace, progress: float) -> Tensor:
        odds = trace.decisions["branches"].margin + math.log(
            TRAINING_THRESHOLD / (1 - TRAINING_THRESHOLD)
        )
        right = odds.gather(1, torch.tensor(subtasks, device=y.device)[y][:, None])
        return F.cross_entropy(logits, y) - weight * F.logsigmoid(right).mean()

    return loss


@described
def fit_branch_threshold(*, max_drop: float) -> Calibrate:
    """Return a calibration that sets `model.threshold`, the probability above which branches run.

    The largest of 0.16, 0.08, 0.04 at which the accuracy is at most `max_drop` below that at 0.02,
    where most branches that could matter run. All four branches run where their probabilities all
    are above the threshold; at one in four, that would need a gate without any preference.
    """

    def calibrate(model: nn.Module, inputs: list[Tensor], labels: list[Tensor]) -> None:
        def accuracy(threshold: float) -> float:
            model.threshold.fill_(threshold)  # type: ignore[operator]
            right = [model(x).argmax(1) == y for x, y in zip(inputs, labels, strict=True)]
            return torch.cat(right).double().mean().item()

        enough = accuracy(0.02) - max_drop
        chosen = next((t for t in (0.16, 0.08, 0.04) if accuracy(t) >= enough), 0.02)
        model.threshold.fill_(chosen)  # type: ignore[operator]

    return calibrate


@register_model(
    family="instance.routing.path",
    paper="Mullapudi et al., HydraNets, CVPR 2018",
    task="image",
    datasets=("fashion_mnist",),
    recipe=Recipe(
        epochs=5,
        loss=subtask_supervision(subtasks=SUBTASKS, weight=0.5),
        calibrate=fit_branch_threshold(max_drop=0.002),
        full_share=0.25,
        augment="none",
        precision="float32",
    ),
)
def hydranet(num_classes: int, in_channels: int, mean: Sequence[float], std: Sequence[float]):
    """A network of 4 branches, each for similar classes, of which an unsure gate runs more."""
    return HydraNet(num_classes, in_channels, mean, std)
