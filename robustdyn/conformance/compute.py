"""Checks of the MACs: every gate guards some, none is above the maximum, and they are what runs."""

from functools import partial

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from robustdyn.adapters import Adapted
from robustdyn.anatomy import anatomy
from robustdyn.conformance.differences import same
from robustdyn.conformance.finding import Finding, Subject, in_one_line, named
from robustdyn.conformance.outputs import traced
from robustdyn.errors import UserError
from robustdyn.execution import execution
from robustdyn.macs import macs_of
from robustdyn.trace import trace

EXECUTED = 6  # samples whose sparse execution is counted


def bounds(subject: Subject) -> list[Finding]:
    """Check 0 <= MACs <= maximum, and that the model is static exactly if it is declared so."""
    _, passed = traced(subject, subject.x)
    macs, maximum = passed.macs(), passed.max_macs()
    low, high = macs.min().item(), macs.max().item()
    found = []
    if high > maximum * (1 + 1e-9):
        found.append(
            Finding(
                "maximum",
                "error",
                f"A sample costs {high:,.0f} MACs, above the reachable maximum of {maximum:,.0f}.",
                "Headroom recovered would exceed 100 %.",
                "State the right share(maximum=...), or bind exclusive options together.",
            )
        )
    spread = f"{low:,.0f} to {high:,.0f} of at most {maximum:,.0f} MACs"
    if subject.spec.static_compute and low != high:
        found.append(
            Finding(
                "static",
                "error",
                f"Declared static, but samples cost {spread}.",
                "Static models are the negative controls: their amplification must be exactly 1.",
                "Register it without static_compute=True.",
            )
        )
    elif not subject.spec.static_compute and low == high and passed.decisions:
        found.append(
            Finding(
                "static",
                "error",
                f"Every input costs the same, {high:,.0f} MACs, though it is not declared static.",
                "There is nothing to attack: amplification is 1 whatever the attack does.",
                "If its compute is constant by design (top-k), register it with "
                "static_compute=True; else its gates have collapsed.",
            )
        )
    return found or [Finding("maximum", "ok", spread)]


def guarded(subject: Subject) -> list[Finding]:
    """Check that every decision guards MACs, that is, that its region is bound."""
    seen = anatomy(subject.model, subject.x[:2])  # some cannot take one
    if not seen.gates:
        return []
    free = [gate.name for gate in seen.gates if gate.guards == 0]
    if free:
        return [
            Finding(
                "regions",
                "error",
                f"No MACs depend on {named(free)}.",
                "Whatever the gate guards counts in full, so its saving is not seen.",
                "Run the guarded work in region(gate.share()), or name its module in adapt()'s "
                "`regions`.",
            )
        ]
    part = sum(gate.guards for gate in seen.gates) / len(seen.gates) / seen.full_macs
    return [Finding("regions", "ok", f"each guards MACs, {part:.1%} of full inference on average")]


@torch.no_grad()
def sparse_execution(subject: Subject) -> list[Finding]:
    """Check that sparse execution gives the same logits, and runs just the MACs that are traced."""
    if subject.spec.static_compute:
        return []
    if subject.spec.randomised:
        return [Finding("sparse", "note", "randomised: dense and sparse execution not compared")]
    dense, passed = traced(subject, subject.x)
    try:
        with execution("sparse"), trace() as marked:
            sparse = subject.model(subject.x)
    except UserError as error:
        return [_no_sparse(error.message, error.remedy)]
    except Exception as error:
        what = f"Sparse execution fails: {in_one_line(error)}"
        return [Finding("sparse", "error", what, "It cannot be timed.", "Mend `sparse`.")]
    if not marked.sparse:
        remedy = "Use the primitives (robustdyn.primitives), which know both executions."
        return [_no_sparse("It has no sparse execution: nothing is skipped for real.", remedy)]
    found = [Finding("sparse", "ok", "dense and sparse execution give the same logits")]
    parted = [k for k in range(len(dense)) if not same(dense[k], sparse[k])]
    if parted:
        found = [
            Finding(
                "sparse",
                "error",
                f"{len(parted)} of {len(dense)} samples have other logits in sparse execution.",
                "What is timed is not what is attacked.",
                "Compute the same in both; mask after batch norm; compare sample "
                f"{parted[0]} layer by layer.",
            )
        ]
    return [*found, _executed(subject, passed.macs())]


def _no_sparse(what: str, remedy: str) -> Finding:
    return Finding(
        "sparse",
        "note",
        what,
        "Its MACs are counted, but the saving is not turned into time, nor checked by running it.",
        remedy,
    )


def _executed(subject: Subject, macs: Tensor) -> Finding:
    step = max(len(macs) // EXECUTED, 1)
    unknown = False
    for k in range(0, len(macs), step):
        x = subject.x[k : k + 1]
        with execution("sparse"), FlopCounterMode(display=False) as counter:
            subject.model(x)
        counted = counter.get_total_flops() / 2
        if abs(counted - macs[k].item()) > 0.5:
            with execution("sparse"):
                counted = macs_of(partial(subject.model, x))
            unknown = True
        if abs(counted - macs[k].item()) > 0.5:
            return Finding(
                "executed",
                "error",
                f"Sample {k} is traced with {macs[k].item():,.0f} MACs, but sparse execution "
                f"runs {counted:,.0f}.",
                "The traced compute is not what is executed.",
                "Look for work outside its region, a dilated mask, or a gate that is not counted"
                + ("." if isinstance(subject.model, Adapted) else "; see CONTRIBUTING.md."),
            )
    if unknown:
        return Finding(
            "executed",
            "note",
            "traced MACs equal what sparse execution runs, by our own formulas",
            "torch's FlopCounterMode has no formula for some operations (fused recurrences, "
            "attention on CPU).",
        )
    return Finding("executed", "ok", "traced MACs equal what FlopCounterMode counts, halved")


CHECKS = (bounds, guarded, sparse_execution)
