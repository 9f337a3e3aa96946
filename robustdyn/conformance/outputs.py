"""Checks of what forward() returns: logits, always the same, whatever runs beside a sample."""

from typing import Any

import torch
from torch import Tensor

from robustdyn.conformance.differences import ATOL, first_difference, same
from robustdyn.conformance.finding import Finding, Subject, in_one_line
from robustdyn.errors import UserError
from robustdyn.trace import Trace, trace

ALONE = 8  # samples that are also run one by one


@torch.no_grad()
def traced(subject: Subject, x: Tensor) -> tuple[Tensor, Trace]:
    """Return the logits and the trace of one pass."""
    with trace() as passed:
        logits = subject.model(x)
    return logits, passed


def first_pass(subject: Subject) -> list[Finding]:
    """Check that a traced pass ends, and that it returns logits."""
    try:
        logits, passed = traced(subject, subject.x)
        passed.macs(), passed.max_macs()
    except UserError as error:
        why = "The compute of its samples cannot be measured."
        return [Finding("logits", "error", error.message, why, error.remedy)]
    except Exception as error:
        why = "Nothing can be measured."
        what = f"The forward pass fails: {in_one_line(error)}"
        return [Finding("logits", "error", what, why, _forward_remedy(error))]
    return [_logits(subject, logits)]


def _forward_remedy(error: Exception) -> str:
    if "cuda" in str(error).lower():
        return "Run it inside `with robustdyn.without_cuda():`, in adapt()'s `call`."
    if isinstance(error, RuntimeError) and "Decision" in str(error):
        return "Give every decision of a pass its own name."
    return "Make `model(x)` work on inputs in [0, 1] of the dataset's shape; see `robustdyn show`."


def _logits(subject: Subject, logits: Any) -> Finding:
    count, classes = len(subject.x), subject.num_classes
    if not isinstance(logits, Tensor):
        return Finding(
            "logits",
            "error",
            f"forward() returns a {type(logits).__name__}, not logits.",
            "Attacks of every library call the model and expect a tensor (B, K).",
            "Adapt it: robustdyn.adapt(module, read=...), where `read` returns the logits.",
        )
    if tuple(logits.shape) != (count, classes):
        return Finding(
            "logits",
            "error",
            f"forward() returns {tuple(logits.shape)} for {count} samples and {classes} classes.",
            "Accuracy cannot be measured.",
            f"Return logits ({count}, {classes}); keep every dimension (no squeeze() without dim).",
        )
    if not logits.isfinite().all():
        return Finding(
            "logits",
            "error",
            f"{int((~logits.isfinite().all(1)).sum())} of {count} samples have logits that are "
            "NaN or infinite.",
            "Predictions and gradients of these samples mean nothing.",
            "Find the operation: torch.autograd.set_detect_anomaly(True), log of 0, division by 0.",
        )
    sums = logits.sum(1)
    if (logits >= 0).all() and torch.allclose(sums, torch.ones_like(sums), atol=1e-3):
        return Finding(
            "logits",
            "error",
            "forward() returns probabilities: no entry is negative and every row sums to 1.",
            "A second softmax flattens the gradient, so attacks look weaker than they are.",
            "Return adapters.from_probabilities(output).",
        )
    return Finding("logits", "ok", f"logits ({count}, {classes}), finite")


def determinism(subject: Subject) -> list[Finding]:
    """Check that two passes agree in eval mode."""
    once, first = traced(subject, subject.x)
    again, second = traced(subject, subject.x)
    moved = [
        name
        for name, decision in first.decisions.items()
        if name in second.decisions and not torch.equal(decision.keep, second.decisions[name].keep)
    ]
    if torch.equal(once, again) and not moved:
        if subject.spec.randomised:
            why = "Reports treat its results as one draw of many."
            return [_needless("determinism", "randomised", "two passes agree", why)]
        return [Finding("determinism", "ok", "two passes agree")]
    place = first_difference(
        subject.model,
        lambda: traced(subject, subject.x),
        lambda: traced(subject, subject.x),
        torch.equal,
    )
    return [
        Finding(
            "determinism",
            "note" if subject.spec.randomised else "error",
            "Two passes over the same inputs differ in eval mode"
            + (f"; the first gate that decides anew is '{moved[0]}'" if moved else "")
            + (f"; noise enters in '{place}'." if place else "."),
            "A sample's accuracy and MACs are one draw of many, and noise can hide from attacks.",
            "Evaluate over several seeds and report the spread."
            if subject.spec.randomised
            else "Turn the noise off in eval mode, or register it with randomised=True.",
        )
    ]


def single_samples(subject: Subject) -> list[Finding]:
    """Check that a batch of one works, and that samples do not depend on their batch."""
    logits, together = traced(subject, subject.x)
    macs = together.macs()
    parted: list[int] = []
    for k in range(0, len(subject.x), max(len(subject.x) // ALONE, 1)):
        try:
            alone, single = traced(subject, subject.x[k : k + 1])
        except Exception as error:
            return [_no_single(error)]
        if not isinstance(alone, Tensor) or alone.shape != logits[:1].shape:
            shape = tuple(alone.shape) if isinstance(alone, Tensor) else type(alone).__name__
            return [_no_single(ValueError(f"forward() returns {shape} for one sample"))]
        if _on_the_edge(together, k):
            continue
        if not same(alone[0], logits[k]) or single.macs()[0].item() != macs[k].item():
            parted.append(k)
    if subject.spec.randomised:
        return [Finding("batch", "ok", "a batch of one works; randomised, so not compared")]
    if not parted:
        if subject.spec.batch_coupled:
            why = "Others may leave it out of comparisons for no reason."
            seen = "samples do not depend on their batch"
            return [_needless("batch", "batch_coupled", seen, why)]
        return [Finding("batch", "ok", "a sample gives the same alone and in a batch")]
    return [_coupled(subject, parted[0], together)]


def _needless(check: str, mark: str, seen: str, why: str) -> Finding:
    """The finding that a model carries a mark that it does not need."""
    remedy = f"Register it without {mark}=True."
    return Finding(check, "warning", f"declared {mark}, but {seen}", why, remedy)


def _on_the_edge(passed: Trace, k: int) -> bool:
    """Whether a gate of sample k is so near its threshold that rounding may decide."""
    margins = [decision.margin[k].abs().min() for decision in passed.decisions.values()]
    return bool(margins) and bool(torch.stack(margins).min() < ATOL)


def _no_single(error: Exception) -> Finding:
    return Finding(
        "batch",
        "error",
        f"A batch of one fails: {in_one_line(error)}",
        "The compute of a sample is what it costs alone.",
        "Usually squeeze() without a dimension: mend it, or pass min_batch=2 to adapt().",
    )


def _coupled(subject: Subject, k: int, together: Trace) -> Finding:
    _, single = traced(subject, subject.x[k : k + 1])
    gates = [
        name
        for name, decision in together.decisions.items()
        if not same(decision.margin[k], single.decisions[name].margin[0])
        or not torch.equal(decision.kept[k], single.decisions[name].kept[0])
    ]

    def rows_agree(batch: Tensor, alone: Tensor) -> bool:
        if batch.dim() == 0 or len(batch) != len(subject.x) or batch.shape[1:] != alone.shape[1:]:
            return True  # its rows are not the samples
        return same(batch[k], alone[0])

    place = first_difference(
        subject.model,
        lambda: traced(subject, subject.x),
        lambda: traced(subject, subject.x[k : k + 1]),
        rows_agree,
    )
    return Finding(
        "batch",
        "note" if subject.spec.batch_coupled else "error",
        "A sample gives something else alone than in a batch"
        + (f"; the first gate that differs is '{gates[0]}'" if gates else "")
        + (f"; it starts in '{place}'." if place else "."),
        "Its result depends on the samples beside it, which an attacker may choose.",
        "Evaluate it at batch 1 to compare with others."
        if subject.spec.batch_coupled
        else "Decide per sample, or register it with batch_coupled=True.",
    )


CHECKS = (determinism, single_samples)
