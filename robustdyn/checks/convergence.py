"""Flags of attacks that have not done what they could."""

from collections.abc import Iterator

import numpy as np
from pandas import DataFrame, Series

from robustdyn.checks.flag import LINE, TOLERANCE, Subject, flag, hostile_rows, known_rows, per_line
from robustdyn.labels import parsed_params
from robustdyn.metrics import headroom_recovered, summarize
from robustdyn.sources import crafted_elsewhere

SETBACK = 0.02  # a larger fall of an attack's success, as eps grows, is not noise of the search
MANY_RISING = 0.2  # of the samples, at the end of an attack
LEAST_RANK_CORRELATION = 0.5
LEAST_SAMPLES = 20  # for a rank correlation
NEAR_MAXIMUM = 0.95  # of the headroom, for an attack that may change everything
EFFORT = ("steps", "restarts", "queries", "eot")  # parameters of which more cannot hurt


def _success(rows: DataFrame, *by: str) -> DataFrame:
    """Return the lines of the attacks with their success: harm done, the more the larger.

    Attacks crafted on another model are left out: more of them need not harm this one more.
    """
    hostile = rows[rows["aim"].isin(["accuracy", "compute"]) & ~crafted_elsewhere(rows)]
    lines = summarize(hostile, by=[*LINE, "aim", "norm", "eps", *by], resamples=1)
    slowed = lines["headroom_recovered"]
    return lines.assign(
        success=slowed.where(lines["aim"] == "compute", 1 - lines["robust_accuracy"])
    )


@flag(
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


@flag(
    raised_if="the same attack with more steps, restarts or queries achieves more, by more than"
    f" {100 * SETBACK:.0f} points",
    means="The shorter run has not converged: its number says how long it ran.",
    do="Report the longer run, and double it until nothing changes.",
)
def more_effort_gains(rows: DataFrame) -> Iterator[Subject]:
    lines = _success(known_rows(rows, "params"), "attack", "objective", "estimator", "params")
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
    """True if the two differ in effort alone, and `long` has more of some and less of none.

    An effort of None, what the attack finds usual, compares with no number.
    """
    rest = [{k: v for k, v in p.items() if k not in EFFORT} for p in (long, short)]
    pairs = [(long.get(k, 1), short.get(k, 1)) for k in EFFORT]
    changed = [(a, b) for a, b in pairs if a != b]
    more = bool(changed) and all(None not in pair and pair[0] > pair[1] for pair in changed)
    return rest[0] == rest[1] and more


@flag(
    raised_if="in the last steps of an attack (10, of short runs a fifth) its objective still made"
    f" more than 5 % of its whole rise, on more than {100 * MANY_RISING:.0f} % of the samples",
    means="The attack has not converged: with more steps it would achieve more.",
    do="Take more steps, or larger ones, until this flag is gone.",
)
def still_rising(rows: DataFrame) -> Iterator[Subject]:
    known = known_rows(rows, "still_rising")
    rising = known["still_rising"].astype(float).groupby([known[c] for c in LINE])
    yield from per_line(
        known[rising.transform("mean") > MANY_RISING],
        lambda group: f"{group['still_rising'].astype(float).mean():.0%} of the samples",
    )


@flag(
    raised_if="an attack that may change everything (linf, eps 1) leaves more than"
    f" {100 - 100 * NEAR_MAXIMUM:.0f} % of the headroom, or more accuracy than chance",
    means="Some input surely does it: the attacks fail, or no input reaches the stated maximum.",
    do="Look for gates without a gradient or that no input opens; attack without gradients.",
)
def unbounded_attack_fails(rows: DataFrame) -> Iterator[Subject]:
    free = rows[(rows["norm"] == "linf") & (rows["eps"] >= 1)]
    free = free.assign(_headroom=headroom_recovered(free))
    for (model, dataset, threat), group in free.groupby(["model", "dataset", "threat"]):
        slow, wrong = hostile_rows(group, "compute"), hostile_rows(group, "accuracy")
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


@flag(
    raised_if="the rank correlation of the expected and the exact MACs over samples is below"
    f" {LEAST_RANK_CORRELATION}",
    means="What attacks climb is not what is measured: the expected MACs lead them astray.",
    do="Attack the margins, follow the exact MACs without gradients, or temper the gates.",
)
def soft_and_hard_disagree(rows: DataFrame) -> Iterator[Subject]:
    columns = [f"{when}_{what}macs" for when in ("clean", "adv") for what in ("", "expected_")]
    known = known_rows(hostile_rows(rows, "compute"), *columns)
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
