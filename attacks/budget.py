"""Cost as a question of two classes, so that attacks on accuracy can reach a budget of compute."""

import torch
from torch import Tensor, nn

from robustdyn.attacks.objectives import TOLERANCE
from robustdyn.errors import UserError
from robustdyn.trace import trace

SCALE = 10.0


class BudgetView(nn.Module):
    """A two-class view of a model: class 1 from a part of the reachable maximum on, else class 0.

    Maps x (B, ...) to logits (B, 2), [0, scale * (C(x) / C_max - budget)], C(x) being the exact
    MACs of the hard model. With labels 0, any attack on accuracy is an attack on this budget: it is
    successful exactly where C(x') >= budget * C_max. Backward, C(x) is the expected MACs.

    It reaches a budget and stops there; it never looks for the largest compute. Attacks that return
    successes only leave an input unchanged whose budget is out of reach. Losses that compare three
    classes, such as DLR, do not work on two.

    Raises:
        UserError: if the budget is no part of the maximum.
    """

    def __init__(self, model: nn.Module, budget: float, *, scale: float = SCALE):
        super().__init__()
        if not (isinstance(budget, int | float) and 0 <= budget <= 1):
            raise UserError(f"The budget {budget!r} is no part of the maximum.", "Give 0 to 1.")
        self.model = model
        self.budget = budget
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        with trace() as passed:
            self.model(x)
        most = passed.max_macs()
        exact = passed.macs() / most - self.budget + TOLERANCE  # (B,) float64
        over = (self.scale * exact).to(x.dtype)
        if torch.is_grad_enabled():
            soft = self.scale * passed.expected_macs().to(x.dtype) / most
            over = over + (soft - soft.detach())
        return torch.stack([torch.zeros_like(over), over], 1)
