"""Words for people: attacks, threats and MACs, lightly humanised."""

from collections.abc import Iterable
from typing import Literal, NamedTuple

from pandas import DataFrame

from robustdyn.metrics import WORST_CASE

Aim = Literal["clean", "noise", "accuracy", "compute", "worst case"]

TIMES, MINUS, DASH = "\u00d7", "\u2212", "\u2013"  # as typographers write them

AIMS: tuple[Aim, ...] = ("clean", "noise", "accuracy", "compute", "worst case")
ACCURACY_OBJECTIVES = (
    "",
    "cross_entropy",
    "dlr",
    "exits_average",
    "exits_max_average",
    "logit_margin",
    "targeted_cross_entropy",
    "targeted_dlr",
    "wrong",
)
COMPUTE_ATTACKS = ("autoslow",)  # attacks on compute that take no objective


def aim_of(attack: str, objective: str) -> Aim:
    """Return what an attack is after; an objective that is not about the label is compute."""
    if attack in ("clean", "noise", WORST_CASE):
        return attack  # type: ignore[return-value]
    family = objective.partition(":")[0]
    if attack in COMPUTE_ATTACKS or family not in ACCURACY_OBJECTIVES:
        return "compute"
    return "accuracy"


def attack_label(attack: str, objective: str, estimator: str = "") -> str:
    """Return for example "pgd compute", or "pgd compute (sigmoid)" with the estimator."""
    label = f"{attack} {objective}".strip().replace("_", " ")
    return f"{label} ({estimator})" if estimator else label


def threat_label(norm: str, eps: float) -> str:
    """Return for example "L∞ 8/255" or "L2 0.5", or "none" where eps is 0."""
    if eps == 0:
        return "none"
    name = {"linf": "L∞", "l2": "L2"}.get(norm, norm)
    return f"{name} {eps_label(norm, eps)}"


def eps_label(norm: str, eps: float) -> str:
    """Return eps, in 255ths where it is a multiple of them and the norm is L∞."""
    steps = eps * 255
    if norm == "linf" and 0 < eps < 1 and abs(steps - round(steps)) < 1e-6:
        return f"{steps:.0f}/255"
    return f"{eps:.4g}"


class Unit(NamedTuple):
    """A unit of compute: so many MACs, its plural for axes and its symbol for tables."""

    macs: float
    plural: str
    symbol: str


UNITS = (Unit(1e9, "billions", "G"), Unit(1e6, "millions", "M"), Unit(1e3, "thousands", "k"))


def unit_for(macs: float) -> Unit:
    """Return the largest unit that is not above `macs`."""
    return next((unit for unit in UNITS if macs >= unit.macs), Unit(1.0, "units", ""))


def count(number: int, noun: str) -> str:
    """Return for example "1 sample" or "250 samples"."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def listed(words: Iterable[object]) -> str:
    """Return for example "a, b and c"."""
    *head, last = [str(word) for word in words] or [""]
    return f"{', '.join(head)} and {last}" if head else last


def sample_note(rows: DataFrame) -> str:
    """Return how many samples and which seeds stand behind a figure of `rows`, as a sentence."""
    sizes = rows.groupby(["model", "dataset", "attack", "objective", "norm", "eps"])[
        "sample_id"
    ].nunique()
    low, high = sizes.min(), sizes.max()
    n = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    seeds = sorted(rows["seed"].unique())
    return f"n = {n} samples per point, seed{'s' if len(seeds) > 1 else ''} {listed(seeds)}."
