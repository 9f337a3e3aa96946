"""What a gate decided, the share of work that this leaves, and the exits of a model."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from robustdyn.gates import straight_through
from robustdyn.kernels.masks import exceeds
from robustdyn.macs import uncounted

KINDS = ("exit", "skip", "position", "channel", "token", "step", "expert", "path", "bits")


class Share:
    """The part (0 to 1) of a region's dense work that each sample needs.

    `hard` and `soft` are tensors (B,); `maximum` is the largest value that any input can reach.
    Shares multiply: `a * b` is the part that is left when both apply. `factors` are the shares
    that a product is made of, or the share alone; `decision` is the gate that it rises with,
    None if there is no single one.
    """

    def __init__(
        self,
        hard: Callable[[], Tensor],
        soft: Callable[[], Tensor],
        maximum: float = 1.0,
        *,
        decision: "Decision | None" = None,
        factors: "tuple[Share, ...]" = (),
    ):
        self._hard = hard
        self._soft = soft
        self.maximum = maximum
        self.decision = decision
        self.factors = factors or (self,)

    @cached_property
    def hard(self) -> Tensor:
        """(B,) float64, from keep; no gradient."""
        with uncounted(), torch.no_grad():
            return self._hard().double()

    @cached_property
    def soft(self) -> Tensor:
        """(B,), from sigmoid(margin); differentiable."""
        with uncounted():
            return self._soft()

    def __mul__(self, other: "Share") -> "Share":
        return Share(
            lambda: self.hard * other.hard,
            lambda: self.soft * other.soft,
            self.maximum * other.maximum,
            factors=self.factors + other.factors,
        )


@dataclass(frozen=True, eq=False)
class Decision:
    """What one gate decided for a batch.

    Attributes:
        name: unique within the model.
        kind: one of KINDS.
        margin: (B, ...), positive = run; log-odds; differentiable.
        keep: the decision as executed, same shape as margin; its backward pass is the gradient
            estimator's.
    """

    name: str
    kind: str
    margin: Tensor
    keep: Tensor

    @cached_property
    def kept(self) -> Tensor:
        """The hard decision, bool, same shape as margin."""
        return exceeds(self.keep, 0.5)

    def rate(self) -> Tensor:
        """Return the mean hard keep of each sample, (B,) float64."""
        return _sample_mean(self.kept.double())

    def select(self, dim: int, index: int) -> "Decision":
        """Return what was decided at one index of a dimension: a time step, an expert, a bit width.

        Args:
            dim: of the margin; not 0, the samples.
            index: along that dimension.
        """
        name = f"{self.name}[{index}]"
        return Decision(
            name, self.kind, self.margin.select(dim, index), self.keep.select(dim, index)
        )

    def share(self, *, dilate: int = 1, power: int = 1, maximum: float = 1.0) -> Share:
        """Return the share of a region that this decision guards: the mean of keep over a sample.

        Args:
            dilate: for margins (B, 1, H, W), the kernel size of a convolution that reads what the
                region computes: its neighbours are needed too. The soft share is the chance that
                any position in the window is kept.
            power: 2 for work between pairs of tokens.
            maximum: the largest share that any input can reach, such as k/E for the best k of E.
        """

        def hard() -> Tensor:
            kept = dilated(self.kept, dilate) if dilate > 1 else self.kept
            return _sample_mean(kept.double()) ** power

        def soft() -> Tensor:
            if dilate > 1:  # 1 - prod(1 - p), with log(1 - sigmoid(m)) = -softplus(m)
                window = F.avg_pool2d(F.softplus(self.margin), dilate, 1, dilate // 2)
                chance = -torch.expm1(-window * dilate**2)
            else:
                chance = torch.sigmoid(self.margin)
            return _sample_mean(chance) ** power

        return Share(hard, soft, maximum, decision=self)


class Deployed(Decision):
    """A decision by the sign of its margin, without a gradient.

    Sparse execution reads `kept` alone, so `keep` is not computed before somebody asks for it.
    """

    def __init__(self, name: str, kind: str, margin: Tensor, keep: Tensor | None = None):
        self.__dict__.update(name=name, kind=kind, margin=margin)
        if keep is not None:
            self.__dict__["keep"] = keep

    @cached_property
    def keep(self) -> Tensor:
        return straight_through(self.margin)

    @cached_property
    def kept(self) -> Tensor:
        return exceeds(self.keep, 0.5) if "keep" in self.__dict__ else exceeds(self.margin, 0.0)


def _sample_mean(values: Tensor) -> Tensor:
    return values.flatten(1).mean(1) if values.dim() > 1 else values


def dilated(kept: Tensor, size: int) -> Tensor:
    """Return the bool mask (B, 1, H, W) of positions within a size x size window of a kept one."""
    return F.max_pool2d(kept.float(), size, 1, size // 2) > 0.5


@dataclass(frozen=True, eq=False)
class Exit:
    """One exit of a model.

    Attributes:
        name: unique within the model.
        logits: (B, K), of every sample, whether or not it stops here.
        stop: (B,), the chance of stopping here, from the soft decisions; sums to 1 over exits.
        taken: (B,) bool, whether the sample really stops here.
    """

    name: str
    logits: Tensor
    stop: Tensor
    taken: Tensor
