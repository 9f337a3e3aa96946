"""Rules of early exits: from the logits of the exits so far to the margin of going on."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Rule = Callable[[list[Tensor]], Tensor]  # logits (B, K) of exits 0..k -> margin (B,) of going on


def confidence(thresholds: Tensor) -> Rule:
    """Return the rule "stop at exit k if the largest probability is at least thresholds[k]".

    The margin of going on is logit(threshold) - logit(largest probability).

    Args:
        thresholds: (exits,), probabilities between 0 and 1.
    """
    bars = torch.logit(thresholds).unbind()

    def margin(logits: list[Tensor]) -> Tensor:
        return bars[len(logits) - 1] - confidence_logit(logits[-1])

    return margin


def confidence_logit(logits: Tensor) -> Tensor:
    """Return the log-odds (B,) of the largest probability of softmax(logits), logits (B, K)."""
    top, index = logits.max(1, keepdim=True)
    others = logits.scatter(1, index, float("-inf"))
    return top.squeeze(1) - others.logsumexp(1)


def entropy(thresholds: Tensor) -> Rule:
    """Return the rule "stop at exit k if the entropy of the answer is at most thresholds[k]".

    BranchyNet's (Teerapittayanon et al. 2016, arXiv:1709.01686). The margin of going on is
    log(entropy) - log(threshold), so that the chance of going on, its sigmoid, is
    entropy / (entropy + threshold).

    Args:
        thresholds: (exits,), positive, in nats.
    """

    def margin(logits: list[Tensor]) -> Tensor:
        return log_entropy(logits[-1]) - thresholds[len(logits) - 1].log()

    return margin


def log_entropy(logits: Tensor) -> Tensor:
    """Return the log (B,) of the entropy of softmax(logits), in nats, logits (B, K).

    Exact where the answer is so sure that its probability rounds to 1.
    """
    sure = confidence_logit(logits)[:, None]
    surprise = F.softplus(-sure.clamp(max=20.0)).log()  # log(-log p) of the most likely class
    surprise = torch.where(sure > 20.0, -sure, surprise)
    log_p = logits.log_softmax(1)
    top = log_p.argmax(1, keepdim=True)
    others = log_p.scatter(1, top, -1.0)  # -1 only stands in: its log is replaced below
    return (log_p + (-others).log().scatter(1, top, surprise)).logsumexp(1)


def patience(times: int) -> Rule:
    """Return the rule "stop at exit k if the answers of exits k - times ... k agree".

    PABEE's (Zhou et al. 2020, arXiv:2006.04152), per sample; needs `first=times` in `early_exits`.
    The margin of going on is, for the class that comes nearest to being the answer of all these
    exits, the largest lead that another class has over it at any of them: log-odds between two
    classes, negative where all agree.

    Args:
        times: how often in a row the answer must stay the same.
    """

    def margin(logits: list[Tensor]) -> Tensor:
        recent = torch.stack(logits[-times - 1 :])  # (times + 1, B, K)
        two, top = recent.topk(2, dim=2)
        classes = torch.arange(recent.shape[2], device=recent.device)
        rival = torch.where(classes == top[..., :1], two[..., 1:], two[..., :1])
        return (rival - recent).amax(0).amin(1)

    return margin
