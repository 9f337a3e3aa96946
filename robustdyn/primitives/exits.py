"""Stop at an exit: run segment after segment until a classifier is sure enough."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from robustdyn.decision import Decision, Exit
from robustdyn.execution import is_sparse
from robustdyn.kernels import gather_rows
from robustdyn.primitives.exit_rules import Rule, confidence_logit
from robustdyn.trace import decide, mark_sparse, record_exit, region


def early_exits(
    x: Tensor,
    segments: Iterable[Callable[[Any], Any]],
    heads: Iterable[Callable[[Any], Tensor]],
    rule: Rule,
    *,
    most_confident: bool = False,
    first: int = 0,
) -> Tensor:
    """Return the logits (B, K) of the exit at which each sample stops.

    Args:
        x: (B, ...), the input of the first segment.
        segments: each maps the output of the one before, sample by sample; an output is a tensor
            (n, ...) or a tuple of such tensors.
        heads: one classifier per segment, (n, ...) -> (n, K).
        rule: the margin of going on after an exit, from the logits of all exits so far.
        most_confident: if no exit is sure, not even the last, answer with the most confident one
            (Shallow-Deep Networks, Kaya et al. 2019, arXiv:1810.07052) instead of the last.
        first: the first exit at which a sample may stop; those before it only inform the rule.
    """
    run = _sparse if is_sparse() else _dense
    return run(x, list(zip(segments, heads, strict=True)), rule, most_confident, first)


def _dense(x: Any, stages: list, rule: Rule, most_confident: bool, first: int) -> Tensor:
    logits: list[Tensor] = []
    gates: list[Decision] = []
    with ExitStack() as regions:
        for k, (segment, head) in enumerate(stages):
            x = segment(x)
            logits.append(head(x))
            if first <= k < len(stages) - 1:
                gates.append(decide(f"exit{k}", rule(logits), kind="exit"))
                regions.enter_context(region(gates[-1].share()))
    return answer(logits, gates, rule, most_confident)


def answer(
    logits: list[Tensor], gates: list[Decision], rule: Rule, most_confident: bool = False
) -> Tensor:
    """Return the logits (B, K) of the exit at which each sample stops, where all exits have run.

    Args:
        logits: (B, K) of each exit.
        gates: the decisions to go on, margins (B,), after every exit but the last; where the
            first exits cannot be taken, after those that can.
        rule, most_confident: as in `early_exits`.
    """
    _record(logits, gates)
    last = _last_answer(torch.stack(logits, 1), rule) if most_confident else logits[-1]
    answers = [*logits[:-1], last]
    out = torch.zeros_like(logits[0])
    reach = torch.ones_like(logits[0][:, 0])  # (B,)
    for answer, gate in zip(answers[len(logits) - 1 - len(gates) :], gates, strict=False):
        out = out + (reach * (1 - gate.keep))[:, None] * answer
        reach = reach * gate.keep
    return out + reach[:, None] * answers[-1]


def _sparse(x: Any, stages: list, rule: Rule, most_confident: bool, first: int) -> Tensor:
    mark_sparse()
    rows: Tensor | None = None  # the samples still running; None are all
    history: Tensor | None = None  # their logits so far, (n, exits, K)
    out: Tensor | None = None  # the logits of each sample's last exit so far
    for k, (segment, head) in enumerate(stages):
        x = segment(x)
        last = head(x)
        each = last.unsqueeze(1)
        history = each if history is None else torch.cat([history, each], 1)
        final = k == len(stages) - 1
        answer = _last_answer(history, rule) if final and most_confident else last
        if out is None or rows is None:
            out = answer
        else:
            out.index_copy_(0, rows, answer)  # too small for a kernel
        if final or k < first:
            continue
        on = decide(f"exit{k}", rule(list(history.unbind(1))), kind="exit").kept
        kept = on.nonzero().squeeze(1)
        if len(kept) == len(on):
            continue
        if not len(kept):
            break
        if rows is None:
            rows, out = kept, out.clone()
        else:
            rows = rows.index_select(0, kept)
        x, history = _gather(x, kept), history.index_select(0, kept)
    if out is None:
        raise ValueError("early_exits needs at least one segment")
    return out


def _gather(x: Any, rows: Tensor) -> Any:
    if isinstance(x, Tensor):
        return gather_rows(x, rows)
    return tuple(gather_rows(part, rows) for part in x)


def _last_answer(history: Tensor, rule: Rule) -> Tensor:
    """The last exit's logits where it is sure, else those of the most confident exit, (B, K).

    `history` is the logits of all exits, (B, exits, K).
    """
    samples, exits, _ = history.shape
    unsure = rule(list(history.unbind(1))) > 0
    best = confidence_logit(history.flatten(0, 1)).unflatten(0, (samples, exits)).argmax(1)
    chosen = torch.where(unsure, best, exits - 1)
    return history[torch.arange(samples, device=history.device), chosen]


def _record(logits: list[Tensor], gates: list[Decision]) -> None:
    chance = torch.ones_like(logits[0][:, 0])
    reached = torch.ones_like(chance, dtype=torch.bool)
    untaken = len(logits) - 1 - len(gates)  # the first exits, which cannot be taken
    for k, part in enumerate(logits):
        if k < untaken:
            stop, taken = torch.zeros_like(chance), torch.zeros_like(reached)
        elif k < len(logits) - 1:
            gate = gates[k - untaken]
            onward = torch.sigmoid(gate.margin)
            stop, taken = chance * (1 - onward), reached & ~gate.kept
            chance, reached = chance * onward, reached & gate.kept
        else:
            stop, taken = chance, reached
        record_exit(Exit(f"exit{k}", part, stop, taken))
