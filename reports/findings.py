"""What the rows say in a few sentences, each computed from the summary."""

from typing import NamedTuple

from pandas import DataFrame, Series

from robustdyn.labels import MINUS, TIMES, count, listed
from robustdyn.reports.tables import is_worst_case, line_labels, percent, times


class Finding(NamedTuple):
    """One statement: a number, what it is of, and a sentence."""

    number: str
    subject: str
    sentence: str


def find(rows: DataFrame, summary: DataFrame) -> list[Finding]:
    """Return the statements for the top of the report.

    Args:
        rows: of the run.
        summary: `tables.summary_table(rows)`.
    """
    lines = summary.join(line_labels(summary)[["attack_label", "threat"]])
    lines = lines[~is_worst_case(lines) & (lines["attack"] != "clean")]
    static = set(rows.loc[rows["static"].astype(bool), "model"])
    moving = lines[~lines["model"].isin(static)]
    found = [*_slowed(moving), *_recovered(moving), *_fooled(lines)]
    return found + _controls(lines[lines["model"].isin(static)])


def _under(line: Series) -> str:
    return f"{line['attack_label']} at {line['threat']} on {line['dataset']}"


def _slowed(lines: DataFrame) -> list[Finding]:
    if lines.empty:
        return []
    if not lines["amplification"].max() > 1:
        sentence = "No attack raised the mean compute of any dynamic model."
        return [Finding(times(1.0), "Nothing is slowed", sentence)]
    line = lines.loc[lines["amplification"].idxmax()]
    interval = times(line["amplification_low"], line["amplification_high"])
    return [
        Finding(
            f"{line['amplification']:.2f}{TIMES}",
            f"{line['model']} is slowed most",
            f"{_under(line)} multiplies the compute of its samples by"
            f" {line['amplification']:.2f} on average (95\u00a0% interval {interval}).",
        )
    ]


def _recovered(lines: DataFrame) -> list[Finding]:
    if not lines["headroom_recovered"].max() > 0:
        return []
    line = lines.loc[lines["headroom_recovered"].idxmax()]
    return [
        Finding(
            f"{100 * line['headroom_recovered']:.0f}\u00a0%",
            f"of the headroom of {line['model']} recovered",
            f"{_under(line)} takes back {percent(line['headroom_recovered'])} of the compute that"
            " the network saves on clean inputs.",
        )
    ]


def _fooled(lines: DataFrame) -> list[Finding]:
    drop = lines["clean_accuracy"] - lines["robust_accuracy"]
    if not drop.max() > 0:
        return []
    line = lines.loc[drop.idxmax()]
    return [
        Finding(
            f"{MINUS}{100 * drop.max():.0f} points",
            f"{line['model']} loses most accuracy",
            f"{_under(line)} takes it from {percent(line['clean_accuracy'])} to"
            f" {percent(line['robust_accuracy'])}.",
        )
    ]


def _controls(lines: DataFrame) -> list[Finding]:
    if lines.empty:
        return []
    names = sorted(lines["model"].unique())
    who = listed(names) if len(names) <= 3 else f"all {len(names)} static models"
    ends = [f"amplification{end}" for end in ("", "_low", "_high")]
    if (lines[ends] == 1.0).all(axis=None):
        sentence = (
            f"Static control: nothing changes the compute of {who}"
            f" ({count(len(lines), 'line')} of the table)."
        )
        return [Finding(times(1.0), "exactly, as it must be", sentence)]
    line = lines.loc[(lines["amplification"] - 1).abs().idxmax()]
    return [
        Finding(
            times(line["amplification"]),
            f"{line['model']} is not static",
            f"{_under(line)} changes the compute of a model registered as static: see the flags.",
        )
    ]
