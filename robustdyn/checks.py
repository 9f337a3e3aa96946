"""Reliability flags: reasons to doubt a number, each with its cause, its meaning and a remedy.

A flag is a check of rows. Some need what `robustdyn.evaluation` finds out about model and attack on
the way (gradients at the clean input, a second pass, the objective's curve); rows that lack those
columns, as older files do, raise none of these. The checks follow AutoAttack's and those of the
Indicators of Attack Failure (Pintor et al. 2022, arXiv:2106.09947), for accuracy and for compute.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from pandas import DataFrame, Series

from robustdyn.labels import count, dynamic, labelled, parsed_params
from robustdyn.metrics import headroom_recovered, summarize

LINE = ["model", "dataset", "attack_label", "threat"]
TOLERANCE = 0.002  # of accuracies and shares, as in AutoAttack's black-box check
SETBACK = 0.02  # a larger fall of an attack's success, as eps grows, is not noise of the search
FEW = 0.05  # of the samples may have no gradient
MANY_RISING = 0.2  # of the samples, at the end of an attack
LEAST_RANK_CORRELATION = 0.5
LEAST_SAMPLES = 20  # for a rank correlation
NEAR_MAXIMUM = 0.95  # of the headroom, for an attack that may change everything
EFFORT = ("steps", "restarts", "queries", "eot")  # parameters of which more cannot hurt


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


Check = Callable[[DataFrame], Iterator[Subject]]


class Definition(NamedTuple):
    """A flag before any rows: what raises it, what it means, what to do, and its check."""

    name: str
    raised_if: str
    means: str
    do: str
    check: Check


FLAGS: list[Definition] = []
"""Every flag, most serious first."""


def find_flags(rows: DataFrame) -> list[Flag]:
    """Return the flags that the rows raise, most serious first; an empty list if none."""
    if rows.empty:
        return []
    rows = rows.reset_index(drop=True)
    raw = labelled(rows.assign(valid=True)).assign(valid=rows["valid"].to_numpy(dtype=bool))
    found = [Flag(*flag[:4], tuple(flag.check(raw))) for flag in FLAGS]
    return [flag for flag in found if flag.subjects]


def flag_table(flags: Sequence[Flag]) -> DataFrame:
    """Return one line per flag and subject, for CSV and JSON."""
    lines = [
        {"flag": flag.name, **subject._asdict(), **dict(zip(_TEXTS, flag[1:4], strict=True))}
        for flag in flags
        for subject in flag.subjects
    ]
    return DataFrame(lines, columns=["flag", *Subject._fields, *_TEXTS])


_TEXTS = ("raised_if", "means", "do")


def _flag(*, raised_if: str, means: str, do: str) -> Callable[[Check], Check]:
    """Define the flag of the decorated check, named as the function."""

    def define(check: Check) -> Check:
        FLAGS.append(Definition(check.__name__, raised_if, means, do, check))
        return check

    return define


def _lines(rows: DataFrame, detail: Callable[[DataFrame], str]) -> Iterator[Subject]:
    """Yield one subject per line of the table that has rows here."""
    for (model, dataset, attack, threat), group in rows.groupby(LINE):
        yield Subject(model, dataset, attack, threat, detail(group))


def _number_of(noun: str) -> Callable[[DataFrame], str]:
    return lambda group: count(len(group), noun)


def _known(rows: DataFrame, *columns: str) -> DataFrame:
    """Return the rows that hold a value in every one of the columns."""
    if not set(columns) <= set(rows):
        return rows.iloc[:0].assign(**{c: Series(dtype=float) for c in columns})
    return rows[rows[list(columns)].notna().all(axis=1)]


def _hostile(rows: DataFrame, aim: str) -> DataFrame:
    """Return the rows of attacks with that aim; of those on compute, on dynamic models only."""
    found = rows[(rows["aim"] == aim) & (rows["eps"] > 0)]
    return dynamic(found) if aim == "compute" else found


@_flag(
    raised_if="the MACs of a static model differ between clean and attacked input",
    means="The model is not static, or its MACs are counted wrongly. No compute number is safe.",
    do="Check the model's registration and its trace against FlopCounterMode.",
)
def static_moved(rows: DataFrame) -> Iterator[Subject]:
    moved = rows[rows["static"].astype(bool) & rows["valid"]]
    yield from _lines(moved[moved["adv_macs"] != moved["clean_macs"]], _number_of("sample"))


@_flag(
    raised_if="the MACs of a sample are NaN or infinite",
    means="Something in the evaluation of this cell went wrong; means leave these samples out.",
    do="Run the cell again and look at the model's trace.",
)
def not_a_number(rows: DataFrame) -> Iterator[Subject]:
    numbers = rows[["clean_macs", "adv_macs", "max_macs"]].to_numpy(dtype=float)
    yield from _lines(rows[~np.isfinite(numbers).all(axis=1)], _number_of("row"))


@_flag(
    raised_if="a sample costs more than the reachable maximum",
    means="The maximum is wrong, and with it headroom recovered.",
    do="Check the maxima that the model's shares state.",
)
def above_maximum(rows: DataFrame) -> Iterator[Subject]:
    most = rows[["clean_macs", "adv_macs"]].max(axis=1)
    yield from _lines(rows[most > rows["max_macs"] * (1 + 1e-9)], _number_of("sample"))


@_flag(
    raised_if="the model's thresholds were fitted on the split that is evaluated",
    means="The operating point was chosen with the answers at hand: clean numbers are too good.",
    do="Fit thresholds on the calibration split, or evaluate on another.",
)
def fitted_on_test(rows: DataFrame) -> Iterator[Subject]:
    known = _known(rows, "fitted_on")
    yield from _lines(known[known["fitted_on"] == known["split"]], lambda g: g["split"].iloc[0])


@_flag(
    raised_if="the clean prediction or the clean MACs of a sample differ between cells",
    means="The model is randomised or coupled over the batch, or its weights changed in between.",
    do="Run all cells with the same weights; judge a randomised model by repeated passes.",
)
def clean_differs(rows: DataFrame) -> Iterator[Subject]:
    keys = ["model", "dataset", "split", "sample_id"]
    values = rows.groupby(keys)[["clean_macs", "clean_pred"]].transform("nunique")
    yield from _lines(rows[(values > 1).any(axis=1)], _number_of("sample"))


@_flag(
    raised_if="two passes over the same clean input gave other logits, answers or MACs",
    means="The model is randomised, and every sample was judged by one pass: its luck is in the"
    " numbers, and gradients point where the noise did.",
    do="Judge by repeated passes, and attack the expectation (eot).",
)
def randomised_judged_once(rows: DataFrame) -> Iterator[Subject]:
    known = _known(rows, "repeatable")
    yield from _lines(known[~known["repeatable"].astype(bool)], _number_of("sample"))


@_flag(
    raised_if="an attacked input is not finite, out of bounds or outside the threat",
    means="The attack broke its own rules. These samples count as not attacked.",
    do="Mend or drop the attack; its numbers are too optimistic for the model.",
)
def invalid_rows(rows: DataFrame) -> Iterator[Subject]:
    yield from _lines(rows[~rows["valid"]], _number_of("row"))


def _without_gradient(rows: DataFrame, column: str) -> Iterator[Subject]:
    """Yield the lines of which more than a few rows have no gradient."""
    none = ~rows[column].astype(bool)
    many = none.groupby([rows[c] for c in LINE]).transform("mean") > FEW
    dead = rows[many & none]
    total = rows.groupby(LINE).size()
    for subject in _lines(dead, lambda group: str(len(group))):
        detail = f"{subject.detail} of {count(int(total[subject[:4]]), 'sample')}"
        yield subject._replace(detail=detail)


@_flag(
    raised_if="the expected MACs have no gradient in the clean input, for more than"
    f" {FEW:.0%} of the samples that could cost more",
    means="The gates are cut off from the input, or saturated: attacks on compute that follow the"
    " gradient do nothing, which looks like robustness and is none.",
    do="Attack the margins (margin_hinge), with another gradient estimator, or without gradients.",
)
def zero_gate_gradient(rows: DataFrame) -> Iterator[Subject]:
    known = _known(dynamic(rows), "gate_gradient")
    known = known[(known["aim"] == "compute") & (known["clean_macs"] < known["max_macs"])]
    yield from _without_gradient(known, "gate_gradient")


@_flag(
    raised_if="the cross-entropy has no gradient in the clean input, for more than"
    f" {FEW:.0%} of the samples that are right",
    means="The logits are so far apart, or so cut off from the input, that attacks which follow"
    " the cross-entropy stand still. That is no robustness.",
    do="Attack a loss that heeds no scale (dlr), or without gradients.",
)
def zero_loss_gradient(rows: DataFrame) -> Iterator[Subject]:
    known = _known(rows, "loss_gradient")
    right = (known["aim"] == "accuracy") & (known["clean_pred"] == known["label"])
    yield from _without_gradient(known[right], "loss_gradient")


@_flag(
    raised_if="a compute attack changed the MACs of no sample of a dynamic model",
    means="The gates may have no gradient: this looks like robustness and is none.",
    do="Attack with another gradient estimator or without gradients.",
)
def compute_unmoved(rows: DataFrame) -> Iterator[Subject]:
    hostile = _hostile(rows, "compute")
    same = hostile["adv_macs"].eq(hostile["clean_macs"])
    full = hostile["clean_macs"].eq(hostile["max_macs"])
    groups = hostile.assign(_same=same, _full=full).groupby(LINE)
    stuck = groups["_same"].transform("all") & ~groups["_full"].transform("all")
    yield from _lines(hostile[stuck], _number_of("sample"))


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


@_flag(
    raised_if="noise does more harm than every attack made for that harm",
    means="The attacks fail, for example because the gradient is masked: the model is weaker than"
    " they say.",
    do="Check the gradient, take more steps or restarts, or attack without gradients.",
)
def noise_wins(rows: DataFrame) -> Iterator[Subject]:
    lines = summarize(rows, by=[*LINE, "aim"], resamples=1)
    yield from _beaten(lines[lines["aim"] == "noise"], lines[lines["aim"] != "noise"])


@_flag(
    raised_if="an attack that only asks the model does more harm than every attack by gradient",
    means="The gradient is masked or useless: what the gradient attacks say is too good.",
    do="Count on the black box, and mend the white box: other objectives, other estimators.",
)
def blackbox_wins(rows: DataFrame) -> Iterator[Subject]:
    known = _known(rows, "uses_gradient")
    known = known[known["aim"].isin(["accuracy", "compute"])]
    white = known["uses_gradient"].astype(bool)
    if white.all() or not white.any():
        return
    black, led = (
        summarize(r, by=[*LINE, "aim"], resamples=1) for r in (known[~white], known[white])
    )
    yield from _beaten(black, led)


def _success(rows: DataFrame, *by: str) -> DataFrame:
    """Return the lines of the attacks with their success: harm done, the more the larger."""
    hostile = rows[rows["aim"].isin(["accuracy", "compute"])]
    lines = summarize(hostile, by=[*LINE, "aim", "norm", "eps", *by], resamples=1)
    slowed = lines["headroom_recovered"]
    return lines.assign(
        success=slowed.where(lines["aim"] == "compute", 1 - lines["robust_accuracy"])
    )


@_flag(
    raised_if=f"an attack achieves less at a larger eps, by more than {100 * SETBACK:.0f} points",
    means="A larger eps allows all that a smaller one does, so the attack has not converged.",
    do="Take more steps or restarts, or scale the step size with eps.",
)
def not_monotone(rows: DataFrame) -> Iterator[Subject]:
    lines = _success(rows).sort_values("eps", kind="stable")
    groups = lines.groupby(["model", "dataset", "attack_label", "norm"])["success"]
    setback = groups.cummax() - lines["success"]
    for line, lost in zip(lines.itertuples(), setback, strict=True):
        if lost > SETBACK:
            detail = f"{100 * lost:.1f} points less"
            yield Subject(line.model, line.dataset, line.attack_label, line.threat, detail)


@_flag(
    raised_if="the same attack with more steps, restarts or queries achieves more, by more than"
    f" {100 * SETBACK:.0f} points",
    means="The shorter run has not converged: its number says how long it ran.",
    do="Report the longer run, and double it until nothing changes.",
)
def more_effort_gains(rows: DataFrame) -> Iterator[Subject]:
    lines = _success(_known(rows, "params"), "attack", "objective", "estimator", "params")
    same = ["model", "dataset", "attack", "objective", "estimator", "norm", "eps"]
    for _, group in lines.groupby(same):
        efforts = [parsed_params(text) for text in group["params"]]
        for short, line in zip(efforts, group.itertuples(), strict=True):
            gains = (
                other.success - line.success
                for long, other in zip(efforts, group.itertuples(), strict=True)
                if _is_longer(long, short)
            )
            gain = max(gains, default=0.0)
            if gain > SETBACK:
                detail = f"{100 * gain:.1f} points more with more effort"
                yield Subject(line.model, line.dataset, line.attack_label, line.threat, detail)


def _is_longer(long: dict, short: dict) -> bool:
    """True if the two differ in effort alone, and `long` has more of some and less of none."""
    rest = [{k: v for k, v in p.items() if k not in EFFORT} for p in (long, short)]
    pairs = [(long.get(k, 1), short.get(k, 1)) for k in EFFORT]
    return rest[0] == rest[1] and any(a > b for a, b in pairs) and all(a >= b for a, b in pairs)


@_flag(
    raised_if="in the last steps of an attack (10, of short runs a fifth) its objective still made"
    f" more than 5 % of its whole rise, on more than {MANY_RISING:.0%} of the samples",
    means="The attack has not converged: with more steps it would achieve more.",
    do="Take more steps, or larger ones, until this flag is gone.",
)
def still_rising(rows: DataFrame) -> Iterator[Subject]:
    known = _known(rows, "still_rising")
    rising = known["still_rising"].astype(float).groupby([known[c] for c in LINE])
    yield from _lines(
        known[rising.transform("mean") > MANY_RISING],
        lambda group: f"{group['still_rising'].astype(float).mean():.0%} of the samples",
    )


@_flag(
    raised_if="an attack that may change everything (linf, eps 1) leaves more than"
    f" {1 - NEAR_MAXIMUM:.0%} of the headroom, or more accuracy than chance",
    means="Some input surely does it: the attacks fail, or no input reaches the stated maximum.",
    do="Look for gates without a gradient or that no input opens; attack without gradients.",
)
def unbounded_attack_fails(rows: DataFrame) -> Iterator[Subject]:
    free = rows[(rows["norm"] == "linf") & (rows["eps"] >= 1)]
    free = free.assign(_headroom=headroom_recovered(free))
    for (model, dataset, threat), group in free.groupby(["model", "dataset", "threat"]):
        slow, wrong = _hostile(group, "compute"), _hostile(group, "accuracy")
        best = slow.groupby("sample_id")["_headroom"].max().mean()
        right = (wrong["adv_pred"] == wrong["label"]).groupby(wrong["sample_id"]).all().mean()
        found = []
        if best < NEAR_MAXIMUM:
            found += [
                (name, f"{best:.0%} of the headroom") for name in slow["attack_label"].unique()
            ]
        if right > 1 / rows.loc[group.index, "label"].nunique() + TOLERANCE:
            found += [(name, f"{right:.0%} right") for name in wrong["attack_label"].unique()]
        yield from (Subject(model, dataset, name, threat, detail) for name, detail in found)


@_flag(
    raised_if="the rank correlation of the expected and the exact MACs over samples is below"
    f" {LEAST_RANK_CORRELATION}",
    means="What attacks climb is not what is measured: the expected MACs lead them astray.",
    do="Attack the margins, follow the exact MACs without gradients, or temper the gates.",
)
def soft_and_hard_disagree(rows: DataFrame) -> Iterator[Subject]:
    columns = [f"{when}_{what}macs" for when in ("clean", "adv") for what in ("", "expected_")]
    known = _known(_hostile(rows, "compute"), *columns)
    for (model, dataset, attack, threat), group in known.groupby(LINE):
        hard, soft = (
            Series(np.concatenate([group[f"clean_{w}macs"], group[f"adv_{w}macs"]]))
            for w in ("", "expected_")
        )
        if len(group) < LEAST_SAMPLES or hard.nunique() < 3:
            continue
        together = hard.rank().corr(soft.rank()) if soft.nunique() > 1 else 0.0
        if together < LEAST_RANK_CORRELATION:
            yield Subject(model, dataset, attack, threat, f"rank correlation {together:.2f}")


@_flag(
    raised_if="one line holds a sample several times with the same seed",
    means="Attacks that differ in something unknown were averaged into one line.",
    do="Report them apart, or give the suite one set of parameters per attack.",
)
def mixed_variants(rows: DataFrame) -> Iterator[Subject]:
    again = rows.duplicated([*LINE, "split", "seed", "sample_id"], keep=False)
    yield from _lines(rows[again], lambda group: count(group["cell"].nunique(), "cell"))


@_flag(
    raised_if="every clean sample of a dynamic model already costs the maximum",
    means="Headroom recovered is NaN: there is nothing to take back.",
    do="Choose an operating point at which the model saves compute.",
)
def no_headroom(rows: DataFrame) -> Iterator[Subject]:
    moving = dynamic(rows)
    none = headroom_recovered(moving).isna().groupby([moving[c] for c in LINE]).transform("all")
    yield from _lines(moving[none], _number_of("sample"))
