"""BlockDrop: a policy network sees the image once and picks all blocks (Wu et al. 2018)."""

from collections.abc import Sequence
from dataclasses import replace
from math import ceil

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustdyn.decision import Decision
from robustdyn.losses import described
from robustdyn.models.layers import BasicBlock, Stem, pooled, residual_plan
from robustdyn.primitives import add_if_kept
from robustdyn.recipe import Loss, Recipe
from robustdyn.registry import register_model
from robustdyn.trace import Trace, decide

LEAST_DEVIATION = 0.25  # of a chance to run; one half is the most


class Policy(nn.Module):
    """Margins (B, blocks), from the image at half its size: one residual block per stage."""

    def __init__(
        self,
        in_channels: int,
        blocks: int,
        mean: Sequence[float],
        std: Sequence[float],
        widths: Sequence[int],
        opening_bias: float = 1.0,
    ):
        super().__init__()
        stem = Stem(in_channels, widths[0], mean, std, stride=2)
        self.body = nn.Sequential(stem, *(BasicBlock(*p) for p in residual_plan(widths, 1)))
        self.linear = nn.Linear(widths[-1], blocks)
        nn.init.constant_(self.linear.bias, opening_bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(pooled(self.body(F.avg_pool2d(x, 2))))


class DroppableBlock(BasicBlock):
    """x <- relu(shortcut(x) + keep * F(x)); the shortcut always runs."""

    def forward(self, x: Tensor, gate: Decision) -> Tensor:  # type: ignore[override]
        return F.relu(add_if_kept(gate, self.residual, x, self.shortcut(x)))


class BlockDrop(nn.Module):
    """A residual network whose blocks are all picked by the policy, before the first one runs.

    The policy, the stem and the shortcuts always run; the first stage, whose blocks take the most
    time for their MACs, has one block. In training the actions are drawn from the policy (the
    recipe's Gumbel estimator draws them with exactly its chances) and no gradient reaches it
    through the network: it learns from its reward alone, see `policy_reward`. Deviations from the
    paper: network and policy are trained together from the start, not the network first, and a
    part of the batches is trained with all blocks; the rectifier follows a dropped branch too.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        mean: Sequence[float],
        std: Sequence[float],
        widths: Sequence[int] = (16, 24, 48),
        blocks: int = 3,
        policy_widths: Sequence[int] = (8, 16, 32),
    ):
        super().__init__()
        plan = residual_plan(widths, blocks)[blocks - 1 :]
        self.policy = Policy(in_channels, len(plan), mean, std, policy_widths)
        self.stem = Stem(in_channels, widths[0], mean, std, stride=2)
        self.blocks = nn.ModuleList(DroppableBlock(*p) for p in plan)
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        margins = self.policy(x)
        x = self.stem(x)
        for k, (block, margin) in enumerate(zip(self.blocks, margins.unbind(1), strict=True)):
            gate = decide(f"block{k}", margin, kind="skip")
            if self.training:
                gate = replace(gate, keep=gate.keep.detach())
            x = block(x, gate)
        return self.head(pooled(x))


@described
def policy_reward(*, penalty: float, entropy: float, spread: float) -> Loss:
    """Return CE - advantage * log-probability of the actions, and two terms, means over the batch.

    The reward is 1 - (share of blocks run)^2 for a right answer and -penalty for a wrong one. The
    advantage is the reward less that of the thresholded policy (self-critical REINFORCE). The
    first third of training has random actions; then the blocks learn one by one, from the last
    back to the first, over the second third.
    Deviations from Wu et al. 2018, arXiv:1711.08393: an answer is right to the degree that it has
    the label's probability, which is less noisy; what the thresholded policy answers is not known
    without a second pass, so that its reward counts the batch's mean degree of the same class;
    only the entropy bonus (mean over blocks) keeps actions random, not bounds on the chances; and
    `spread` times what the standard deviation over the batch of a block's chance lacks to
    LEAST_DEVIATION, in the mean over the blocks, is a cost: without it a block can run for every
    input or for none. A bonus on the deviation itself ends in two fixed paths.
    """

    def loss(logits: Tensor, y: Tensor, trace: Trace, progress: float) -> Tensor:
        gates = trace.decisions.values()
        kept = torch.stack([gate.kept for gate in gates], 1).to(logits.dtype)  # (B, blocks)
        margin = torch.stack([gate.margin for gate in gates], 1)
        answer = F.cross_entropy(logits, y)
        learning = ceil(kept.shape[1] * min(1.0, max(0.0, 3 * progress - 1)))
        if not learning or kept.all():  # with every gate open the policy did not act
            return answer
        with torch.no_grad():
            right = logits.softmax(1).gather(1, y[:, None])[:, 0]  # (B,)
            peers = (y[:, None] == y).to(logits.dtype)  # (B, B), of the same class
            advantage = _reward(right, kept, penalty) - _reward(
                peers @ right / peers.sum(1), (margin > 0).to(logits.dtype), penalty
            )
        actions, margin = kept[:, -learning:], margin[:, -learning:]
        chance = torch.sigmoid(margin)
        surprise = F.binary_cross_entropy_with_logits(margin, actions, reduction="none").sum(1)
        doubt = F.binary_cross_entropy_with_logits(margin, chance)
        deviation = (chance.var(0, correction=0) + 1e-8).sqrt()
        lack = F.relu(LEAST_DEVIATION - deviation).mean()
        return answer + (advantage * surprise).mean() - entropy * doubt + spread * lack

    return loss


def _reward(right: Tensor, kept: Tensor, penalty: float) -> Tensor:
    """(B,), from how right the answers are (B,) and the blocks kept (B, blocks)."""
    return right * (1 - kept.mean(1).square()) - (1 - right) * penalty


@register_model(
    family="instance.depth.layer_skip.policy",
    paper="Wu et al., BlockDrop, 2018, arXiv:1711.08393",
    task="image",
    recipe=Recipe(
        epochs=6,
        loss=policy_reward(penalty=4.0, entropy=0.15, spread=2.0),
        optimizer="adamw",
        lr=3e-3,
        weight_decay=1e-2,
        augment="none",
        estimator="gumbel",
        full_share=0.15,
        precision="float32",
    ),
)
def blockdrop(num_classes: int, in_channels: int, mean: Sequence[float], std: Sequence[float]):
    """A residual network whose policy network picks the blocks to run before any of them."""
    return BlockDrop(num_classes, in_channels, mean, std)
