"""Words for people: attacks, threats and MACs, lightly humanised; rows labelled with them."""

import json
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

from pandas import DataFrame, Series

from robustdyn.metrics import WORST_CASE, line_columns, without_invalid
from robustdyn.sources import split_attack

Aim = Literal["clean", "noise", "accuracy", "compute", "worst case"]

TIMES, MINUS, DASH = "\u00d7", "\u2212", "\u2013"  # as typographers write them

AIMS: tuple[Aim, ...] = ("clean", "noise", "accuracy", "compute", "worst case")
ACCURACY_OBJECTIVES = (
    "",
    "cross_entropy",
    "dlr",
    "exits_average",
    "exits_max_average",
    "fast_and_wrong",
    "targeted_cross_entropy",
    "targeted_dlr",
    "wrong",
)
COMPUTE_ATTACKS = (  # attacks on compute that take no objective
    *("autoslow", "deepsloth", "ereba", "gradauto", "gradmdm", "ilfo", "slowformer", "sponge"),
    "timing",
)
NATURAL = ("noise", "corruption")  # that aim at nothing: what an attack must beat


def aim_of(attack: str, objective: str) -> Aim:
    """Return what an attack is after; an objective that is not about the label is compute."""
    attack, _ = split_attack(attack)
    if attack in ("clean", WORST_CASE):
        return attack  # type: ignore[return-value]
    if attack in NATURAL:
        return "noise"
    family = objective.partition(":")[0]
    if attack in COMPUTE_ATTACKS or family not in ACCURACY_OBJECTIVES:
        return "compute"
    return "accuracy"


def attack_label(attack: str, objective: str, estimator: str = "", params: str = "") -> str:
    """Return for example "pgd compute", or with all it has "pgd compute steps 10 (sigmoid)".

    The source of an attack that has one stands at the end: "pgd compute from skip_rnn".
    """
    attack, source = split_attack(attack)
    label = f"{attack} {objective} {params}".strip().replace("_", " ")
    label = f"{label} ({estimator})" if estimator else label
    return f"{label} from {source}" if source else label


def param_texts(lines: DataFrame) -> Series:
    """Return for each line the parameters that tell variants of its attack apart: "steps 10".

    Args:
        lines: with the columns attack, objective and params, a JSON object or "".
    """
    texts = Series("", index=lines.index)
    for _, group in lines.groupby(["attack", "objective"]):
        parsed = group["params"].map(parsed_params)
        names = sorted({name for params in parsed for name in params})
        differ = [n for n in names if len({repr(params.get(n)) for params in parsed}) > 1]
        texts[group.index] = parsed.map(
            lambda params, differ=differ: ", ".join(
                f"{n} {params[n]}" for n in differ if n in params
            )
        )
    return texts


def parsed_params(text: Any) -> dict[str, Any]:
    """Return the parameters that a row's column params holds; {} where it holds none."""
    return json.loads(text) if isinstance(text, str) and text else {}


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


def labelled(rows: DataFrame) -> DataFrame:
    """Return rows with invalid attacks undone and the columns attack_label, aim and threat.

    The dataset carries the name of its split where the rows hold several, and the attack that of
    its gradient estimator and its parameters where one attack was run with several.
    """
    columns = line_columns(rows)
    keys = ["attack", "objective", "estimator", "params", "norm", "eps"]
    rows = with_cell(rows)
    for column in ("estimator", "params"):
        rows = rows.assign(**{column: rows[column].fillna("") if column in rows else ""})
    names = rows[keys].drop_duplicates()
    params = param_texts(names) if "params" in columns else Series("", index=names.index)
    several = "estimator" in columns
    texts = [
        (
            attack_label(line.attack, line.objective, line.estimator if several else "", text),
            aim_of(line.attack, line.objective),
            threat_label(line.norm, line.eps),
        )
        for line, text in zip(names.itertuples(), params, strict=True)
    ]
    names[["attack_label", "aim", "threat"]] = texts
    rows = without_invalid(rows).merge(names, on=keys, how="left")
    if "split" in columns:
        rows["dataset"] = rows["dataset"] + " " + rows["split"]
    return rows


def with_cell(rows: DataFrame) -> DataFrame:
    """Return rows with the column cell, empty for rows that `evaluate` returned directly."""
    return rows if "cell" in rows else rows.assign(cell="")


def dynamic(rows: DataFrame) -> DataFrame:
    """Return the rows of the models that decide how much to compute."""
    return rows[~rows["static"].astype(bool)]
