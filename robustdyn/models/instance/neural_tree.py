"""Adaptive neural tree: learned routers send each sample down one path (Tanno et al. 2019)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustdyn.losses import described
from robustdyn.models.layers import BasicBlock, Stem, conv_bn, pooled
from robustdyn.primitives import either, leaf
from robustdyn.recipe import Loss, Recipe
from robustdyn.registry import register_model
from robustdyn.trace import Trace, decide


class Router(nn.Module):
    """Margin (B,) of going right: 3x3 convolution, ReLU, pooling, linear."""

    def __init__(self, channels: int, hidden: int = 8):
        super().__init__()
        self.conv = nn.Conv2d(channels, hidden, 3, 2, 1)
        self.linear = nn.Linear(hidden, 1)
        nn.init.normal_(self.linear.weight, std=0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(pooled(F.relu(self.conv(x))))[:, 0].float()


class Leaf(nn.Module):
    """The solver at the end of a path: pooling and one linear layer."""

    def __init__(self, name: str, channels: int, num_classes: int):
        super().__init__()
        self.name = name
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return leaf(self.name, self.linear(pooled(x)))


class Node(nn.Module):
    """A router between two subtrees, of which the right one can cost more; (B, C, H, W) -> (B, K).

    Each subtree begins with the transformation on the edge to it.
    """

    def __init__(self, name: str, channels: int, *, left: nn.Module, right: nn.Module):
        super().__init__()
        self.name = name
        self.router = Router(channels)
        self.left = left
        self.right = right

    def forward(self, x: Tensor) -> Tensor:
        gate = decide(self.name, self.router(x), kind="path")
        return either(gate, self.right, self.left, x)


class NeuralTree(nn.Module):
    """Three routers and four leaves, whose paths differ in length.

        root --- shallow --- brief (no further transformation), short (one more block)
              `- deep ------ long (one more block), longest (two more)

    Deviation from the paper: the tree's shape is fixed instead of grown.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        mean: Sequence[float],
        std: Sequence[float],
        widths: Sequence[int] = (16, 32, 48),
    ):
        super().__init__()
        first, width, last = widths
        self.root_edge = nn.Sequential(
            Stem(in_channels, first, mean, std, stride=2), BasicBlock(first, width, 2)
        )
        short = nn.Sequential(BasicBlock(width, width, 2), Leaf("short", width, num_classes))
        long = nn.Sequential(BasicBlock(width, last, 2), Leaf("long", last, num_classes))
        longest = nn.Sequential(
            BasicBlock(width, last, 2),
            BasicBlock(last, last),
            Leaf("longest", last, num_classes),
        )
        shallow = nn.Sequential(
            nn.Sequential(conv_bn(width, width, stride=2), nn.ReLU()),
            Node("shallow", width, left=Leaf("brief", width, num_classes), right=short),
        )
        deep = nn.Sequential(
            BasicBlock(width, width), Node("deep", width, left=long, right=longest)
        )
        self.root = Node("root", width, left=shallow, right=deep)

    def forward(self, x: Tensor) -> Tensor:
        return self.root(self.root_edge(x))


@described
def mixture_of_leaves(*, target: float, weight: float, spread: float, decay: float) -> Loss:
    """Return NLL of the mixture + CE + weight * (rates and compute off target)^2 + regularisers.

    The mixture is sum over leaves of the chance of ending there times the leaf's prediction: the
    paper's loss, soft in the routers. The CE is that of the path really taken (hard routing, or the
    longest path in full inference). A router's rate is its mean chance to go right, over the
    samples of the batch, each as much as it reaches the node: it is held at 1/2, and `spread` times
    the variance of the chance keeps it dependent on the input, against `decay` times the mean
    square of the margin, which keeps it from saturating (all summed over the routers). The expected
    compute is held at `target` of the full one.
    """

    def loss(logits: Tensor, y: Tensor, trace: Trace, progress: float) -> Tensor:
        answers = torch.stack([exit.logits.float().log_softmax(1) for exit in trace.exits])
        stops = torch.stack([exit.stop for exit in trace.exits])  # (leaves, B)
        own = answers[:, torch.arange(len(y)), y]
        mixture = -(stops.clamp(min=1e-6).log() + own).logsumexp(0).mean()

        nodes = [trace.decisions[name] for name in ("root", "deep", "shallow")]
        right = torch.stack([torch.sigmoid(node.margin) for node in nodes])  # (3, B)
        reach = torch.stack([torch.ones_like(right[0]), right[0], 1 - right[0]]).detach()
        reach = reach / reach.sum(1, keepdim=True)
        rate = (reach * right).sum(1, keepdim=True)
        variance = (reach * (right - rate).square()).sum(1)
        used = (trace.expected_macs() / trace.max_macs()).mean()
        off = (rate - 0.5).square().sum() + (used - target).square()
        warm = min(1.0, progress / 0.33)
        large = torch.stack([node.margin.square().mean() for node in nodes]).sum()
        penalty = weight * off + decay * large - warm * spread * variance.sum()
        return mixture + F.cross_entropy(logits, y) + penalty

    return loss


@register_model(
    family="instance.routing.tree",
    paper="Tanno et al., Adaptive Neural Trees, 2019, arXiv:1807.06699",
    task="image",
    recipe=Recipe(
        epochs=5,
        loss=mixture_of_leaves(target=0.55, weight=2.0, spread=1.0, decay=0.005),
        full_share=0.15,
        augment="none",
        precision="float32",
    ),
)
def neural_tree(num_classes: int, in_channels: int, mean: Sequence[float], std: Sequence[float]):
    """A tree of convolutional edges whose routers send each sample to one of four leaves."""
    return NeuralTree(num_classes, in_channels, mean, std)
