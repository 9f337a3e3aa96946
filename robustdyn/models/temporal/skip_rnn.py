"""Skip RNN: a recurrence that copies its state instead of updating it (Campos et al. 2018)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robustdyn.losses import step_cost
from robustdyn.models.layers import Normalise
from robustdyn.primitives import gru_state, gru_step, selected
from robustdyn.recipe import Recipe
from robustdyn.registry import register_model
from robustdyn.trace import decide


class SkipRNN(nn.Module):
    """A GRU with a state update gate.

    The update probability u accumulates the increment that the last update predicted; the state
    is updated where round(u) = 1, and u starts again. The first step always updates.
    """

    def __init__(
        self,
        num_classes: int,
        features: int,
        mean: Sequence[float],
        std: Sequence[float],
        hidden: int = 64,
    ):
        super().__init__()
        self.normalise = Normalise(mean, std, dim=2, rank=3)
        self.cell = nn.GRUCell(features, hidden)
        self.increment = nn.Linear(hidden, 1)
        nn.init.constant_(self.increment.bias, 1.0)
        self.initial = nn.Parameter(torch.zeros(hidden))
        self.head = nn.Linear(hidden, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.normalise(x)  # (B, T, F)
        h = self.initial + x.new_zeros(x.shape[0], 1)  # (B, hidden)
        state = gru_state(self.cell, self.increment, x[:, 0], (h,))
        chance = state[1]  # of an update at the next step, (B,)
        for t in range(1, x.shape[1]):
            margin = torch.logit(chance, eps=1e-4)
            gate = decide(f"update{t}", margin, kind="step")
            state = gru_step(gate, self.cell, self.increment, x[:, t], state)
            increment = state[1]
            grown = chance + torch.minimum(increment, 1 - chance)
            chance = selected(gate, increment, grown)
        return self.head(state[0])


@register_model(
    family="temporal.text_signal.skip_update",
    paper="Campos et al., Skip RNN, 2018, arXiv:1708.06834",
    task="sequence",
    recipe=Recipe(
        epochs=60,
        loss=step_cost(weight=0.02),
        optimizer="adamw",
        lr=3e-3,
        batch_size=16,
        weight_decay=1e-2,
        augment="jitter",
        precision="float32",
    ),
)
def skip_rnn(num_classes: int, in_channels: int, mean: Sequence[float], std: Sequence[float]):
    """A gated recurrent network that skips state updates."""
    return SkipRNN(num_classes, in_channels, mean, std)
