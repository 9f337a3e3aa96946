"""Checks of the decisions: what they are, whether they depend on the input, their gradient."""

import torch
from torch import Tensor

from robustdyn.conformance.finding import Finding, Subject, in_one_line, named
from robustdyn.conformance.lost_gradients import GradientWatch
from robustdyn.conformance.outputs import traced
from robustdyn.decision import Decision
from robustdyn.trace import trace

GRADIENT_SAMPLES = 8
CHUNK = 64  # samples at once, where many are looked at
SATURATED = 16.6  # from here on 1 - sigmoid(margin) is below the resolution of float32


def decisions(subject: Subject) -> list[Finding]:
    """List the decisions with their kinds and shapes; check their entries."""
    _, passed = traced(subject, subject.x)
    gates = list(passed.decisions.values())
    if not gates:
        if subject.spec.static_compute:
            return [Finding("decisions", "ok", "none, as declared: static compute")]
        return [
            Finding(
                "decisions",
                "error",
                "No decision was found, though the model is not declared static.",
                "Its compute cannot be attacked or attributed to gates.",
                "Call robustdyn.decide (or `seen.decide` in an adapter) for every gate, or "
                "register it with static_compute=True.",
            )
        ]
    found = [Finding("decisions", "ok", _listed(gates))]
    found += _malformed(gates, len(subject.x))
    if len(found) == 1:
        found += _disagreeing(gates, random=subject.spec.randomised)
        found += [*_probabilities(gates), *_constant(subject, gates)]
    return found


def _listed(gates: list[Decision]) -> str:
    shapes: dict[tuple[str, tuple], list[str]] = {}
    for gate in gates:
        shapes.setdefault((gate.kind, tuple(gate.margin.shape[1:])), []).append(gate.name)
    parts = [
        f"{len(names)} of kind {kind}, (B{''.join(f', {n}' for n in shape)}): {named(names)}"
        for (kind, shape), names in shapes.items()
    ]
    return "; ".join(parts)


def _malformed(gates: list[Decision], count: int) -> list[Finding]:
    short = [g.name for g in gates if g.margin.dim() == 0 or len(g.margin) != count]
    broken = [g.name for g in gates if g.name not in short and g.margin.isnan().any()]
    found = []
    if short:
        found.append(
            Finding(
                "decisions",
                "error",
                f"The margin of {named(short)} has not one entry per sample, (B, ...).",
                "Its MACs belong to no sample.",
                "Decide before averaging over the batch.",
            )
        )
    if broken:
        found.append(
            Finding(
                "decisions",
                "error",
                f"The margin of {named(broken)} is NaN for some samples.",
                "NaN is never above 0: the gate closes for a reason that is none.",
                "Look for log(0), or a threshold of 0, 1 or NaN.",
            )
        )
    return found


def _disagreeing(gates: list[Decision], *, random: bool) -> list[Finding]:
    names = [g.name for g in gates if ((g.margin > 0) != g.kept).double().mean() > 1e-3]
    if not names:
        return []
    return [
        Finding(
            "decisions",
            "warning" if random else "error",
            f"What {named(names)} executed is not where the margin is above 0.",
            "An attack on the margin pushes towards another decision than the one executed.",
            "Give the score minus its threshold as margin; noise and top-k shift it per sample.",
        )
    ]


def _probabilities(gates: list[Decision]) -> list[Finding]:
    names = [
        g.name
        for g in gates
        if (g.margin >= 0).all() and (g.margin <= 1).all() and g.margin.unique().numel() > 2
    ]
    if not names:
        return []
    return [
        Finding(
            "decisions",
            "error",
            f"All margins of {named(names)} lie between 0 and 1: they look like probabilities.",
            "A margin is positive where the gate runs, so such a gate always does.",
            "Give adapters.log_odds(probability).",
        )
    ]


def _constant(subject: Subject, gates: list[Decision]) -> list[Finding]:
    seen: dict[str, set[bool]] = {gate.name: set(gate.kept.unique().tolist()) for gate in gates}
    for part in subject.real.split(CHUNK):
        for gate in traced(subject, part)[1].decisions.values():
            seen[gate.name].update(gate.kept.unique().tolist())
    on = [name for name, values in seen.items() if values == {True}]
    off = [name for name, values in seen.items() if values == {False}]
    if not on and not off:
        return []
    parts = [f"{named(n)} always {w}" for n, w in ((on, "on"), (off, "off")) if n]
    whole = len(on) + len(off) == len(seen)
    return [
        Finding(
            "decisions",
            "warning" if whole else "note",
            f"{'All gates are' if whole else 'Gates are'} constant over {len(subject.real)} real "
            f"samples, noisy ones and noise: {'; '.join(parts)}.",
            "A gate that collapsed in training is no dynamic compute; robustness against slowdown "
            "then means nothing.",
            "Fit its threshold on the calibration split, or train with a target rate.",
        )
    ]


def gradients(subject: Subject) -> list[Finding]:
    """Check that the compute and every gate have a gradient in the input; say where it is lost."""
    x = subject.x[:: max(len(subject.x) // GRADIENT_SAMPLES, 1)][:GRADIENT_SAMPLES]
    x = x.clone().requires_grad_()
    watch = GradientWatch(subject.model, x)
    with watch.watching(subject.model), trace() as passed:
        logits = subject.model(x)
    found = _backward(logits, x)
    if not passed.decisions or any("backward pass fails" in f.what for f in found):
        return found
    lost = {
        name: watch.loss(gate.margin)
        for name, gate in passed.decisions.items()
        if not _has_gradient(_mixed(gate.margin), x)
    }
    for name, loss in lost.items():
        found.append(
            Finding(
                "gradients",
                "error",
                f"The gate '{name}' has no gradient in the input; it is lost at {loss}.",
                "An attack on its compute does nothing, and the model looks robust.",
                "Decide on the score before that: a float tensor that derives from the input.",
            )
        )
    dead = [g.name for g in passed.decisions.values() if not _has_gradient(_mixed(g.keep), x)]
    if dead and not lost:
        found.append(
            Finding(
                "gradients",
                "note",
                f"The keep of {named(dead)} passes no gradient (the margin does).",
                "Attacks on compute see the gates; attacks on accuracy do not see through them.",
                "Judge its accuracy with black-box attacks too.",
            )
        )
    if not lost and not subject.spec.static_compute:
        found += _expected(passed.expected_macs(), passed.decisions, x)
    if not any(f.level in ("error", "warning") for f in found):
        count = len(passed.decisions)
        found.insert(0, Finding("gradients", "ok", f"{count} of {count} decisions have one"))
    return found


def _mixed(margin: Tensor) -> Tensor:
    """The entries of a margin, weighed at random: a plain sum of centred scores is always 0."""
    weights = torch.rand(margin.shape, generator=torch.Generator().manual_seed(0))
    return (margin * weights.to(margin)).sum()


def _has_gradient(value: Tensor, x: Tensor) -> bool:
    if not value.requires_grad:
        return False
    (gradient,) = torch.autograd.grad(value, x, retain_graph=True, allow_unused=True)
    return gradient is not None and bool((gradient != 0).any())


def _backward(logits: Tensor, x: Tensor) -> list[Finding]:
    try:
        if _has_gradient(logits.square().sum(), x):
            return []
    except RuntimeError as error:
        in_place = "modified by an inplace operation" in str(error)
        return [
            Finding(
                "gradients",
                "error",
                "The backward pass fails: "
                + ("something that it needs is overwritten in place." if in_place else "")
                + ("" if in_place else in_one_line(error)),
                "No gradient attack can run.",
                "Let adapt()'s `call` run it inside torch.autograd.graph.saved_tensors_hooks("
                "torch.clone, lambda kept: kept)."
                if in_place
                else "Mend the operation; torch.autograd.set_detect_anomaly(True) names it.",
            )
        ]
    return [
        Finding(
            "gradients",
            "error",
            "The logits have no gradient in the input.",
            "Gradient attacks on accuracy do nothing, and the model looks robust.",
            "Let forward() run without torch.no_grad(), detach() and .data on the way.",
        )
    ]


def _expected(expected: Tensor, gates: dict[str, Decision], x: Tensor) -> list[Finding]:
    if not expected.requires_grad:
        what, why = (
            "The expected MACs depend on no decision.",
            "The regions are not bound to gates.",
        )
        return [Finding("gradients", "error", what, why, "Bind a region to every decision.")]
    (gradient,) = torch.autograd.grad(expected.sum(), x)
    still = (gradient.flatten(1).abs().amax(1) == 0).sum().item()
    if not still:
        return []
    stuck = [n for n, g in gates.items() if (g.margin.detach().abs() > SATURATED).any()]
    return [
        Finding(
            "gradients",
            "warning",
            f"The expected MACs of {still} of {len(x)} samples have a gradient of exactly 0"
            + (f": the margins of {named(stuck)} are saturated." if stuck else "."),
            "Their sigmoid is 0 or 1 in float32, so an attack on expected MACs stands still.",
            "Attack with an objective that does not saturate, or scale the score down.",
        )
    ]


CHECKS = (decisions, gradients)
