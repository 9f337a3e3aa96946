"""Flags: reasons to doubt a number, each with its cause, its meaning and a remedy."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from pandas import DataFrame

from robustdyn.metrics import headroom_recovered, summarize
from robustdyn.reports.frames import dynamic, labelled
from robustdyn.reports.labels import count

LINE = ["model", "dataset", "attack_label", "threat"]
TOLERANCE = 0.002  # of accuracies and shares, as in AutoAttack's black-box check
SETBACK = 0.02  # a larger fall of an attack's success, as eps grows, is not noise of the search


class Subject(NamedTuple):
    """The line of the table a flag speaks of, and a detail."""

    model: str
    dataset: str
    attack: str
    threat: str
    detail: str = ""


class Flag(NamedTuple):
    """A doubt and the lines it was raised for."""

    name: str
    raised_if: str
    means: str
    do: str
    subjects: tuple[Subject, ...]


def find_flags(rows: DataFrame) -> list[Flag]:
    """Return the flags that the rows raise, most serious first; an empty list if none."""
    raw = labelled(rows.assign(valid=True)).assign(valid=rows["valid"].to_numpy(dtype=bool))
    found = []
    for check in _CHECKS:
        flag = check(raw)
        if flag.subjects:
            found.append(flag)
    return found


def _subjects(rows: DataFrame, detail: Callable[[DataFrame], str]) -> tuple[Subject, ...]:
    """Return one subject per line of the table that has rows here."""
    return tuple(
        Subject(model, dataset, attack, threat, detail(group))
        for (model, dataset, attack, threat), group in rows.groupby(LINE)
    )


def _invalid_rows(rows: DataFrame) -> Flag:
    return Flag(
        "invalid_rows",
        "an attacked input is not finite, out of bounds or outside the threat",
        "The attack broke its own rules. These samples count as not attacked.",
        "Mend or drop the attack; its numbers are too optimistic for the model.",
        _subjects(rows[~rows["valid"]], lambda group: count(len(group), "row")),
    )


def _not_a_number(rows: DataFrame) -> Flag:
    numbers = rows[["clean_macs", "adv_macs", "max_macs"]].to_numpy(dtype=float)
    return Flag(
        "not_a_number",
        "the MACs of a sample are NaN or infinite",
        "Something in the evaluation of this cell went wrong; means leave these samples out.",
        "Run the cell again and look at the model's trace.",
        _subjects(rows[~np.isfinite(numbers).all(axis=1)], lambda g: count(len(g), "row")),
    )


def _static_moved(rows: DataFrame) -> Flag:
    moved = rows[rows["static"].astype(bool) & rows["valid"]]
    moved = moved[moved["adv_macs"] != moved["clean_macs"]]
    return Flag(
        "static_moved",
        "the MACs of a static model differ between clean and attacked input",
        "The model is not static, or its MACs are counted wrongly. No compute number is safe.",
        "Check the model's registration and its trace against FlopCounterMode.",
        _subjects(moved, lambda group: count(len(group), "sample")),
    )


def _above_maximum(rows: DataFrame) -> Flag:
    most = rows[["clean_macs", "adv_macs"]].max(axis=1)
    return Flag(
        "above_maximum",
        "a sample costs more than the reachable maximum",
        "The maximum is wrong, and with it headroom recovered.",
        "Check the maxima that the model's shares state.",
        _subjects(rows[most > rows["max_macs"] * (1 + 1e-9)], lambda g: count(len(g), "sample")),
    )


def _clean_differs(rows: DataFrame) -> Flag:
    keys = ["model", "dataset", "split", "sample_id"]
    values = rows.groupby(keys)[["clean_macs", "clean_pred"]].transform("nunique")
    return Flag(
        "clean_differs",
        "the clean prediction or the clean MACs of a sample differ between cells",
        "The model is randomised or coupled over the batch, or its weights changed in between.",
        "Run all cells with the same weights; judge a randomised model by repeated passes.",
        _subjects(rows[(values > 1).any(axis=1)], lambda g: count(len(g), "sample")),
    )


def _mixed_variants(rows: DataFrame) -> Flag:
    again = rows.duplicated([*LINE, "split", "seed", "sample_id"], keep=False)
    return Flag(
        "mixed_variants",
        "one line holds a sample several times with the same seed",
        "Attacks that differ only in their parameters were averaged into one line.",
        "Report them apart, or give the suite one set of parameters per attack.",
        _subjects(rows[again], lambda group: count(group["cell"].nunique(), "cell")),
    )


def _compute_unmoved(rows: DataFrame) -> Flag:
    hostile = dynamic(rows[(rows["aim"] == "compute") & (rows["eps"] > 0)])
    same = hostile["adv_macs"].eq(hostile["clean_macs"])
    full = hostile["clean_macs"].eq(hostile["max_macs"])
    groups = hostile.assign(_same=same, _full=full).groupby(LINE)
    stuck = groups["_same"].transform("all") & ~groups["_full"].transform("all")
    return Flag(
        "compute_unmoved",
        "a compute attack changed the MACs of no sample of a dynamic model",
        "The gates may have no gradient: this looks like robustness and is none.",
        "Attack with another gradient estimator or without gradients.",
        _subjects(hostile[stuck], lambda group: count(len(group), "sample")),
    )


def _no_headroom(rows: DataFrame) -> Flag:
    moving = dynamic(rows)
    none = headroom_recovered(moving).isna().groupby([moving[c] for c in LINE]).transform("all")
    return Flag(
        "no_headroom",
        "every clean sample of a dynamic model already costs the maximum",
        "Headroom recovered is NaN: there is nothing to take back.",
        "Choose an operating point at which the model saves compute.",
        _subjects(moving[none], lambda group: count(len(group), "sample")),
    )


def _noise_wins(rows: DataFrame) -> Flag:
    lines = summarize(rows, by=[*LINE, "aim"], resamples=1)
    subjects = []
    for (model, dataset, threat), group in lines.groupby(["model", "dataset", "threat"]):
        noise = group[group["aim"] == "noise"]
        for aim, metric, sign in (
            ("accuracy", "robust_accuracy", -1),
            ("compute", "amplification", 1),
        ):
            ours = group[group["aim"] == aim]
            if noise.empty or ours.empty:
                continue
            best = (sign * ours[metric]).max()
            by_noise = (sign * noise[metric]).max()
            if by_noise > best + TOLERANCE:
                name = metric.replace("_", " ")
                detail = f"{name} {abs(by_noise):.3f}, by {aim} attacks {abs(best):.3f}"
                subjects.append(Subject(model, dataset, "noise", threat, detail))
    return Flag(
        "noise_wins",
        "noise does more harm than every attack made for that harm",
        "The attacks fail, for example because the gradient is masked: the model is weaker than"
        " they say.",
        "Check the gradient, take more steps or restarts, or attack without gradients.",
        tuple(subjects),
    )


def _not_monotone(rows: DataFrame) -> Flag:
    hostile = rows[rows["aim"].isin(["accuracy", "compute"])]
    by = ["model", "dataset", "attack_label", "aim", "norm", "eps", "threat"]
    lines = summarize(hostile, by=by, resamples=1)
    compute = lines["aim"] == "compute"
    saved = lines["adv_macs"] / lines["max_macs"]
    lines["success"] = saved.where(compute, 1 - lines["robust_accuracy"])
    groups = lines.groupby(["model", "dataset", "attack_label", "norm"])["success"]
    lines["setback"] = groups.cummax() - lines["success"]
    worse = lines[lines["setback"] > SETBACK]
    subjects = (
        Subject(model, dataset, attack, threat, f"{100 * setback:.1f} points less")
        for model, dataset, attack, threat, setback in zip(
            *(worse[name] for name in [*LINE, "setback"]), strict=True
        )
    )
    return Flag(
        "not_monotone",
        f"an attack achieves less at a larger eps, by more than {100 * SETBACK:.0f} points",
        "A larger eps allows all that a smaller one does, so the attack has not converged.",
        "Take more steps or restarts, or scale the step size with eps.",
        tuple(subjects),
    )


_CHECKS = (
    _static_moved,
    _not_a_number,
    _above_maximum,
    _clean_differs,
    _invalid_rows,
    _compute_unmoved,
    _noise_wins,
    _not_monotone,
    _mixed_variants,
    _no_headroom,
)
