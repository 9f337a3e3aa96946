"""Tables: the summary as exact numbers, and the same lines humanised."""

from collections.abc import Callable
from typing import NamedTuple

import pandas as pd
from pandas import DataFrame, Series

from robustdyn.labels import DASH, TIMES, attack_label, param_texts, threat_label, unit_for
from robustdyn.metrics import WORST_CASE, line_columns, summarize, worst_case


class Column(NamedTuple):
    """A column of the headline table: its heading, the metric behind it and how it is written."""

    heading: str
    metric: str
    write: Callable[..., str]
    meaning: str


def percent(*fractions: float) -> str:
    """Return for example "62.4 %", or with a dash between the ends of an interval."""
    return _written([f"{100 * value:.1f}" for value in fractions], "\u00a0%")


def macs(*numbers: float) -> str:
    """Return for example "18.8 M", or with a dash between the ends of an interval."""
    unit = unit_for(numbers[0])
    texts = [f"{value / unit.macs:#.3g}".rstrip(".") for value in numbers]
    return _written(texts, f"\u00a0{unit.symbol}" if unit.symbol else "")


def times(*factors: float) -> str:
    """Return for example 1.764 with a times sign; 1.0 stands for exactly 1."""
    return _written(["1.0" if value == 1 else f"{value:.3f}" for value in factors], TIMES)


def _written(texts: list[str], unit: str) -> str:
    dash = " to " if any(text.startswith("-") for text in texts) else DASH
    return dash.join(texts) + unit


COLUMNS = (
    Column("Clean accuracy", "clean_accuracy", percent, "share of clean samples that are right"),
    Column(
        "Robust accuracy",
        "robust_accuracy",
        percent,
        "share of samples that are right both clean and attacked",
    ),
    Column("Clean MACs", "clean_macs", macs, "mean over samples, unattacked"),
    Column("Attacked MACs", "adv_macs", macs, "mean over samples, attacked"),
    Column("Amplification", "amplification", times, "mean over samples of C(x') / C(x)"),
    Column(
        "Headroom recovered",
        "headroom_recovered",
        percent,
        "mean over samples of (C(x') - C(x)) / (C_max - C(x)); none for static models",
    ),
)


def summary_table(rows: DataFrame) -> DataFrame:
    """Return `metrics.summarize` of the rows and, where there are several attacks, the worst case.

    The worst case is one line per model, dataset and threat that saw at least two attacks.
    """
    by = line_columns(rows)
    summary = summarize(rows, by=by)
    attacks = rows[rows["attack"] != "clean"]
    variants = ["attack", "objective", "estimator", *(["params"] if "params" in by else [])]
    threat = [c for c in by if c not in variants]
    several = attacks[[*threat, *variants]].drop_duplicates().groupby(threat).size().gt(1)
    chosen = several[several].index.to_frame(index=False)
    if chosen.empty:
        return summary
    worst = summarize(worst_case(attacks.merge(chosen, on=threat)), by=by)
    return pd.concat([summary, worst], ignore_index=True)


def line_labels(summary: DataFrame) -> DataFrame:
    """Return attack_label and threat of every line of a summary, beside model and dataset."""
    none = Series("", index=summary.index)
    estimators = summary.get("estimator", none)
    params = param_texts(summary) if "params" in summary else none
    texts = zip(summary["attack"], summary["objective"], estimators, params, strict=True)
    labels = summary[["model", "dataset"]].copy()
    if "split" in summary:
        labels["dataset"] = labels["dataset"] + " " + summary["split"]
    labels["attack_label"] = [attack_label(*text) for text in texts]
    threats = zip(summary["norm"], summary["eps"], strict=True)
    labels["threat"] = [threat_label(norm, eps) for norm, eps in threats]
    return labels


def headline_table(rows: DataFrame) -> DataFrame:
    """Return the summary for people: percentages, M MACs, 95 % intervals in brackets."""
    summary = summary_table(rows)
    names = {"model": "Model", "dataset": "Dataset", "attack_label": "Attack", "threat": "Threat"}
    table = line_labels(summary).rename(columns=names)
    table["n"] = summary["n"]
    for column in COLUMNS:
        table[column.heading] = [with_interval(line, column) for _, line in summary.iterrows()]
    return table


def with_interval(line: Series, column: Column) -> str:
    """Return for example "62.4 % [56.1 to 68.7 %]", with a dash for "to"."""
    value, interval = written(line, column)
    return f"{value} [{interval}]" if interval else value


def written(line: Series, column: Column) -> tuple[str, str]:
    """Return the value and its interval, which is empty where it has no width."""
    value, low, high = (line[f"{column.metric}{end}"] for end in ("", "_low", "_high"))
    if pd.isna(value):
        return DASH, ""
    return column.write(value), "" if low == high else column.write(low, high)


def worst_case_samples(rows: DataFrame) -> DataFrame:
    """Return the pointwise worst case, one line per sample: labels, predictions, MACs."""
    columns = ["model", "dataset", "split", "norm", "eps", "sample_id", "label", "clean_pred",
               "adv_pred", "clean_macs", "adv_macs", "max_macs"]  # fmt: skip
    return worst_case(rows)[columns].reset_index(drop=True)


def is_worst_case(summary: DataFrame) -> Series:
    """Return which lines of a summary are the pointwise worst case over attacks."""
    return summary["attack"] == WORST_CASE
