"""Objectives that read the exits of a model: unsure exits do not stop. Judged by exact MACs."""

import torch
from torch import Tensor
from torch.nn import functional as F

from robustdyn.attacks.compute_objectives import by_macs, guarded
from robustdyn.attacks.objectives import register_objective
from robustdyn.trace import Trace

UNIFORM_PART = 0.8  # of the patience objective; lambda in SAME


def uniform_exits(logits: Tensor, y: Tensor, trace: Trace) -> Tensor:
    """Return minus the cross-entropy of the exits' answers to the uniform one, (B,).

    DeepSloth (Hong et al. 2021, arXiv:2010.02432). Deviation: an exit weighs as the MACs that
    stopping there saves. Zero for a model without exits.
    """
    total = torch.zeros_like(logits[:, 0])
    for weight, answer in _early(trace):
        total = total + weight * F.log_softmax(answer, 1).mean(1)
    return total


def patience(logits: Tensor, y: Tensor, trace: Trace) -> Tensor:
    """Return .8 * uniform_exits - .2 * cross-entropy of the exits to two classes in turn, (B,).

    For rules that stop when successive exits agree (PABEE): after SAME (Chen et al. 2023,
    arXiv:2305.12228). The two classes are those that the exits, on average, make most likely;
    exits of even place are led to the first, of odd place to the second.
    """
    early = _early(trace)
    if not early:
        return torch.zeros_like(logits[:, 0])
    answers = torch.stack([answer for _, answer in early])  # (exits, B, K)
    pair = answers.detach().mean(0).topk(min(2, logits.shape[1]), 1).indices  # (B, 2)
    disagreement = torch.zeros_like(logits[:, 0])
    for k, (weight, answer) in enumerate(early):
        towards = pair[:, k % pair.shape[1]]
        disagreement = disagreement - weight * F.cross_entropy(answer, towards, reduction="none")
    uniform = uniform_exits(logits, y, trace)
    return UNIFORM_PART * uniform + (1 - UNIFORM_PART) * disagreement


def _early(trace: Trace) -> list[tuple[float, Tensor]]:
    """The weight and the logits (B, K) of each exit but the last; the weights sum to 1.

    An exit's gate guards what stopping there saves; where gates and exits do not pair up, all
    exits weigh alike.
    """
    answers = [exit.logits for exit in trace.exits[:-1]]
    saved: dict[str, float] = {}
    for share, _, most in guarded(trace):
        if share.decision is not None and share.decision.kind == "exit":
            saved[share.decision.name] = saved.get(share.decision.name, 0.0) + most
    weights = list(saved.values()) if len(saved) == len(answers) else [1.0] * len(answers)
    total = sum(weights)
    return [(w / total, answer) for w, answer in zip(weights, answers, strict=True)]


register_objective(by_macs("uniform_exits", uniform_exits))
register_objective(by_macs("patience", patience))
