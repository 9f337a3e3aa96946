"""Numbers from rows: how much accuracy an attack costs, and how much compute.

All functions take the rows of an evaluation (one row per sample and attack) and return pandas
objects; none changes its input. A row with `valid == False` is not an attack: its attacked values
count as the clean ones, and `summarize` says how many there were.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from pandas import DataFrame, Index, Series, concat

LINE = ("model", "dataset", "attack", "objective", "norm", "eps")
METRICS = (
    "clean_accuracy",
    "robust_accuracy",
    "clean_macs",
    "adv_macs",
    "max_macs",
    "amplification",
    "headroom_recovered",
)
WORST_CASE = "worst case"

_CLEAN_VALUE_OF = {
    "adv_pred": "clean_pred",
    "adv_macs": "clean_macs",
    "adv_bit_operations": "clean_bit_operations",
    "adv_expected_macs": "clean_expected_macs",
    "adv_exit": "clean_exit",
    "adv_gates": "clean_gates",
    "adv_image": "image",
    "adv_map": "clean_map",
}
_CHUNK = 4_000_000  # most draws of the bootstrap multiplied at once


class Interval(NamedTuple):
    """A mean and the ends of its 95 % interval."""

    mean: float
    low: float
    high: float


def without_invalid(rows: DataFrame) -> DataFrame:
    """Return rows in which every invalid attack is replaced by no attack (adv_* = clean_*)."""
    invalid = ~rows["valid"].astype(bool)
    rows = rows.copy(deep=False)
    if not invalid.any():
        return rows
    for adv, clean in _CLEAN_VALUE_OF.items():
        if adv in rows and clean in rows:
            rows[adv] = rows[adv].where(~invalid, rows[clean])
    for distance in {"linf", "l2"} & set(rows):
        rows[distance] = rows[distance].where(~invalid, 0.0)
    return rows


def amplification(rows: DataFrame, currency: str = "macs") -> Series:
    """Return C(x') / C(x) of every row; exactly 1.0 where the compute did not change.

    `currency` is "macs", or "bit_operations": MACs x weight bits x activation bits.
    """
    rows = without_invalid(rows)
    return (rows[f"adv_{currency}"] / rows[f"clean_{currency}"]).rename("amplification")


def headroom_recovered(rows: DataFrame, currency: str = "macs") -> Series:
    """Return (C(x') - C(x)) / (C_max - C(x)) of every row; `currency` as in `amplification`.

    NaN where the clean sample already costs the maximum (always so for static models). Nothing is
    clipped: an attack that makes a sample cheaper gives a negative value.
    """
    rows = without_invalid(rows)
    headroom = rows[f"max_{currency}"] - rows[f"clean_{currency}"]
    gained = rows[f"adv_{currency}"] - rows[f"clean_{currency}"]
    return (gained / headroom.where(headroom != 0)).rename("headroom_recovered")


def line_columns(rows: DataFrame) -> list[str]:
    """Return the columns that tell the lines of a summary of `rows` apart.

    These are model, dataset, attack, objective, norm and eps, and also the split, the gradient
    estimator and the attack's parameters where one line would otherwise average over several.
    """
    line = list(LINE)
    groups = rows.groupby(list(LINE))
    for column, before in (("split", "attack"), ("estimator", "norm"), ("params", "norm")):
        if column in rows and groups[column].nunique().gt(1).any():
            line.insert(line.index(before), column)
    return line


def summarize(
    rows: DataFrame,
    *,
    by: Sequence[str] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> DataFrame:
    """Return one line per group of rows: the mean over its samples of every metric.

    Robust accuracy counts the samples that are right both clean and attacked. Amplification and
    headroom recovered are means of the per-sample values; samples without headroom are left out of
    the latter, and it is NaN where none has any. Samples seen several times in a group (several
    seeds) are averaged first.

    Args:
        rows: one row per sample and attack.
        by: the columns that define a group; `line_columns(rows)` if left out.
        resamples: draws of the bootstrap over samples. Clean and attacked values of a sample stay
            together, and groups of equal size see the same draws, so that lines can be compared.
        seed: of the bootstrap; the same rows and seed give the same numbers.

    Returns:
        The columns of `by`, then n (samples), invalid (rows), and for every name in METRICS the
        mean and the ends of its 95 % percentile interval, `NAME_low` and `NAME_high`.
        Accuracies are fractions, MACs are per sample.
    """
    by = line_columns(rows) if by is None else list(by)
    clean_right = rows["clean_pred"] == rows["label"]
    valid = without_invalid(rows)
    values = DataFrame(
        {
            "clean_accuracy": clean_right.astype(float),
            "robust_accuracy": (clean_right & (valid["adv_pred"] == valid["label"])).astype(float),
            "clean_macs": valid["clean_macs"],
            "adv_macs": valid["adv_macs"],
            "max_macs": valid["max_macs"],
            "amplification": amplification(valid),
            "headroom_recovered": headroom_recovered(valid),
        },
        columns=list(METRICS),
    )
    invalid = (~rows["valid"].astype(bool)).rename("invalid")
    table = concat([rows[[*by, "sample_id"]], invalid, values], axis=1)
    lines = []
    for key, group in table.groupby(by, sort=True, dropna=False):
        samples = group.groupby("sample_id")[list(METRICS)].mean().to_numpy()
        mean, low, high = _bootstrap(samples, resamples, seed)
        line = dict(zip(by, key, strict=True))
        line |= {"n": len(samples), "invalid": int(group["invalid"].sum())}
        for k, metric in enumerate(METRICS):
            line |= {metric: mean[k], f"{metric}_low": low[k], f"{metric}_high": high[k]}
        lines.append(line)
    intervals = [name for m in METRICS for name in (m, f"{m}_low", f"{m}_high")]
    summary = DataFrame(lines, columns=Index([*by, "n", "invalid", *intervals]))
    return summary.astype(dict.fromkeys(intervals, float))  # of no rows too


def worst_case(rows: DataFrame) -> DataFrame:
    """Return rows of the pointwise worst case over all attacks, one per sample and threat.

    For every model, dataset, norm, eps and sample: right only if right under every attack and seed,
    and the MACs, exit and gates of the attack that cost the most. The two may stem from different
    attacks: this bounds accuracy and compute each on its own. Clean cells are left out.
    """
    rows = without_invalid(rows[rows["attack"] != "clean"]).reset_index(drop=True)
    sample = ["model", "dataset", "split", "norm", "eps", "sample_id"]
    if rows.empty:
        return rows
    wrong = (rows["adv_pred"] != rows["label"]).astype(int)
    known = rows["adv_macs"].fillna(-np.inf)
    groups = rows.assign(_wrong=wrong, _macs=known).groupby(sample, sort=True)
    costliest = groups["_macs"].idxmax()
    worst = rows.loc[costliest].reset_index(drop=True)
    worst["adv_pred"] = rows.loc[groups["_wrong"].idxmax(), "adv_pred"].to_numpy()
    for distance in ("linf", "l2"):
        worst[distance] = groups[distance].max().to_numpy()
    worst["seed"] = groups["seed"].min().to_numpy()
    unset = {"cell": "", "attack": WORST_CASE, "objective": "", "estimator": "", "valid": True}
    unset |= {name: "" for name in ("params", "source") if name in worst}
    pictures = ("image", "adv_image", "image_shape", "clean_map", "adv_map", "map_shape")
    return worst.assign(**unset).assign(**dict.fromkeys(pictures))


def mean_interval(values: np.ndarray, *, resamples: int = 1000, seed: int = 0) -> Interval:
    """Return the mean of values (N,) and its 95 % percentile bootstrap interval."""
    mean, low, high = _bootstrap(np.asarray(values, dtype=float)[:, None], resamples, seed)
    return Interval(float(mean[0]), float(low[0]), float(high[0]))


@lru_cache(maxsize=2)
def _draws(n: int, resamples: int, seed: int) -> np.ndarray:
    """Return (resamples, n): how often each resample drew each sample."""
    random = np.random.default_rng(seed)
    draws = np.empty((resamples, n), dtype=np.uint8)
    for counts in draws:
        counts[:] = np.bincount(random.integers(0, n, size=n), minlength=n)
    return draws


def _bootstrap(
    samples: np.ndarray, resamples: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return mean, low and high (M,) of samples (N, M); NaN entries are left out of their mean."""
    known = ~np.isnan(samples)
    filled = np.where(known, samples, 0.0)
    columns = np.concatenate([filled, known], axis=1)  # (N, 2M): sums and how many were summed
    draws = _draws(len(samples), resamples, seed)
    step = max(1, _CHUNK // len(samples))
    sums = np.concatenate([draws[k : k + step] @ columns for k in range(0, resamples, step)])
    total, count = np.split(sums, 2, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = total / count  # (resamples, M)
        mean = filled.sum(axis=0) / known.sum(axis=0)
    low, high = np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    some = known.any(axis=0)
    if some.any():
        low[some], high[some] = np.nanpercentile(means[:, some], [2.5, 97.5], axis=0)
    # Equal samples have an interval of width 0, which rounding must not move beside the mean.
    return mean, np.fmin(low, mean), np.fmax(high, mean)
