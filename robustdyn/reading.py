"""What one pass of a foreign module left behind, and how its gates are read from that."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from robustdyn.decision import Decision
from robustdyn.errors import UserError, suggest
from robustdyn.foreign_pass import Call
from robustdyn.gates import forward_is_hard, keep_from
from robustdyn.primitives.exits import Rule, answer
from robustdyn.trace import decide, record_decision


@dataclass
class Pass:
    """What one forward pass of a foreign module left behind, for `read` to interpret.

    Attributes:
        module: the foreign module; for gates that it leaves on itself as attributes.
        output: what `call` returned.
        gates: the decisions made so far, by name.
        samples: how many samples the model was given.
    """

    module: nn.Module
    output: Any
    samples: int
    gates: dict[str, Decision] = field(default_factory=dict)
    _calls: Mapping[str, list[Call]] = field(default_factory=dict)

    def calls(self, name: str) -> list[Call]:
        """Return the calls of a watched module, in their order: inputs and output of each.

        Raises:
            UserError: if the module is not watched.
        """
        if name not in self._calls:
            raise UserError(
                f"The module '{name}' is not watched.",
                f"{suggest(name, self._calls)}Name it in adapt(..., watch=[...]).",
            )
        return self._calls[name]

    def decide(
        self, name: str, margin: Tensor, *, kind: str, keep: Tensor | None = None
    ) -> Decision:
        """Record what a gate decided.

        Args:
            name: unique within the model.
            margin: (B, ...), the score before thresholding, positive = run; log-odds wherever there
                is a probability. Where the module gives nothing but its hard mask, that (bool or
                int): the MACs are right, but the decision has no gradient.
            kind: as for `decide`.
            keep: the decision as executed, where that is more than margin > 0; same shape.

        Raises:
            UserError: if the margin is no tensor, or has no entry per sample.
        """
        if not isinstance(margin, Tensor) or margin.dim() == 0 or len(margin) < self.samples:
            shape = tuple(margin.shape) if isinstance(margin, Tensor) else type(margin).__name__
            raise UserError(
                f"The margin of '{name}' is {shape}, for {self.samples} samples.",
                "Give one entry per sample, (B, ...): a mean over the batch cannot be used.",
            )
        margin = margin[: self.samples]
        if not margin.is_floating_point():
            margin = torch.where(margin > 0, 1.0, -1.0)
        if keep is None:
            decision = decide(name, margin, kind=kind)
        else:  # forced gates (full inference, one gate closed) are forced here too
            executed = keep[: self.samples].reshape(margin.shape).to(margin.dtype)
            taken = executed if forward_is_hard() else keep_from(margin)
            decision = Decision(name, kind, margin, taken)
            record_decision(decision)
        self.gates[name] = decision
        return decision

    def exits(
        self, logits: Sequence[Tensor], rule: Rule, *, most_confident: bool = False
    ) -> Tensor:
        """Return the logits (B, K) of the exit at which each sample stops, by deciding exit0, ...

        Args:
            logits: (B, K) of every exit.
            rule, most_confident: as for `primitives.early_exits`.
        """
        parts = [part[: self.samples] for part in logits]
        gates = [
            self.decide(f"exit{k}", rule(parts[: k + 1]), kind="exit")
            for k in range(len(parts) - 1)
        ]
        return answer(parts, gates, rule, most_confident)


def from_probabilities(probabilities: Tensor) -> Tensor:
    """Return logits (B, K) with softmax `probabilities`; log-probabilities are logits already."""
    return probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log()


def log_odds(probability: Tensor) -> Tensor:
    """Return the margin of a gate that runs where `probability` is above one half, same shape."""
    return torch.logit(probability, eps=torch.finfo(probability.dtype).eps)
