"""Flags of attacks whose gradient is of no use: it is missing, or others do better without."""

from collections.abc import Iterator

from pandas import DataFrame

from robustdyn.checks.flag import (
    LINE,
    TOLERANCE,
    Subject,
    flag,
    hostile_rows,
    known_rows,
    number_of,
    per_line,
)
from robustdyn.labels import count, dynamic
from robustdyn.metrics import summarize

FEW = 0.05  # of the samples may have no gradient


def _without_gradient(rows: DataFrame, column: str) -> Iterator[Subject]:
    """Yield the lines of which more than a few rows have no gradient."""
    none = ~rows[column].astype(bool)
    many = none.groupby([rows[c] for c in LINE]).transform("mean") > FEW
    dead = rows[many & none]
    total = rows.groupby(LINE).size()
    for subject in per_line(dead, lambda group: str(len(group))):
        detail = f"{subject.detail} of {count(int(total[subject[:4]]), 'sample')}"
        yield subject._replace(detail=detail)


@flag(
    raised_if="the expected MACs have no gradient in the clean input, for more than"
    f" {100 * FEW:.0f} % of the samples that could cost more",
    means="The gates are cut off from the input, or saturated: attacks on compute that follow the"
    " gradient do nothing, which looks like robustness and is none.",
    do="Attack the margins (margin_hinge), with another gradient estimator, or without gradients.",
)
def zero_gate_gradient(rows: DataFrame) -> Iterator[Subject]:
    known = known_rows(dynamic(rows), "gate_gradient")
    known = known[(known["aim"] == "compute") & (known["clean_macs"] < known["max_macs"])]
    yield from _without_gradient(known, "gate_gradient")


@flag(
    raised_if="the cross-entropy has no gradient in the clean input, for more than"
    f" {100 * FEW:.0f} % of the samples that are right",
    means="The logits are so far apart, or so cut off from the input, that attacks which follow"
    " the cross-entropy stand still. That is no robustness.",
    do="Attack a loss that heeds no scale (dlr), or without gradients.",
)
def zero_loss_gradient(rows: DataFrame) -> Iterator[Subject]:
    known = known_rows(rows, "loss_gradient")
    right = (known["aim"] == "accuracy") & (known["clean_pred"] == known["label"])
    yield from _without_gradient(known[right], "loss_gradient")


@flag(
    raised_if="a compute attack changed the MACs of no sample of a dynamic model",
    means="The gates may have no gradient: this looks like robustness and is none.",
    do="Attack with another gradient estimator or without gradients.",
)
def compute_unmoved(rows: DataFrame) -> Iterator[Subject]:
    hostile = hostile_rows(rows, "compute")
    same = hostile["adv_macs"].eq(hostile["clean_macs"])
    full = hostile["clean_macs"].eq(hostile["max_macs"])
    groups = hostile.assign(_same=same, _full=full).groupby(LINE)
    stuck = groups["_same"].transform("all") & ~groups["_full"].transform("all")
    yield from per_line(hostile[stuck], number_of("sample"))


_METRIC = {"accuracy": ("robust_accuracy", -1), "compute": ("headroom_recovered", 1)}


def _beaten(winners: DataFrame, losers: DataFrame) -> Iterator[Subject]:
    """Yield a subject for each aim in which a line of `winners` does better than all `losers`.

    Both are summaries by LINE and aim; winners without an aim of their own count for both.
    """
    for (model, dataset, threat), group in winners.groupby(["model", "dataset", "threat"]):
        same = (losers[["model", "dataset", "threat"]] == [model, dataset, threat]).all(axis=1)
        for aim, (metric, sign) in _METRIC.items():
            theirs = group[group["aim"].isin([aim, "noise"]) & group[metric].notna()]
            ours = losers[same & (losers["aim"] == aim) & losers[metric].notna()]
            if theirs.empty or ours.empty:
                continue
            best, top = (sign * ours[metric]).max(), (sign * theirs[metric]).idxmax()
            won = sign * theirs.loc[top, metric]
            if won > best + TOLERANCE:
                name = metric.replace("_", " ")
                detail = f"{name} {abs(won):.3f}, by {aim} attacks {abs(best):.3f}"
                yield Subject(model, dataset, theirs.loc[top, "attack_label"], threat, detail)


@flag(
    raised_if="noise does more harm than every attack made for that harm",
    means="The attacks fail, for example because the gradient is masked: the model is weaker than"
    " they say.",
    do="Check the gradient, take more steps or restarts, or attack without gradients.",
)
def noise_wins(rows: DataFrame) -> Iterator[Subject]:
    lines = summarize(rows, by=[*LINE, "aim"], resamples=1)
    yield from _beaten(lines[lines["aim"] == "noise"], lines[lines["aim"] != "noise"])


@flag(
    raised_if="an attack that only asks the model does more harm than every attack by gradient",
    means="The gradient is masked or useless: what the gradient attacks say is too good.",
    do="Count on the black box, and mend the white box: other objectives, other estimators.",
)
def blackbox_wins(rows: DataFrame) -> Iterator[Subject]:
    known = known_rows(rows, "uses_gradient")
    known = known[known["aim"].isin(["accuracy", "compute"])]
    white = known["uses_gradient"].astype(bool)
    if white.all() or not white.any():
        return
    black, led = (
        summarize(r, by=[*LINE, "aim"], resamples=1) for r in (known[~white], known[white])
    )
    yield from _beaten(black, led)
