"""Rows of attacks with a source: crafted on that model, judged on the same or another one.

The column `source` names it; rows of other attacks hold nothing there, or have no such column. The
attack is called for example "pgd from skipnet".
"""

from pandas import DataFrame, Series


def split_attack(attack: str) -> tuple[str, str]:
    """Return the attack alone and its source, "" if it has none: "pgd" and "skipnet"."""
    alone, _, source = attack.partition(" from ")
    return alone, source


def transferred(rows: DataFrame) -> DataFrame:
    """Return the rows of attacks with a source, under the name of the attack alone."""
    return _alone(rows[_sources(rows) != ""])


def crafted_elsewhere(rows: DataFrame) -> Series:
    """Return which rows are of attacks that were crafted on another model than they judge."""
    sources = _sources(rows)
    return (sources != "") & (sources != rows["model"])


def on_itself(rows: DataFrame) -> DataFrame:
    """Return the rows without the attacks crafted elsewhere, each under its name alone."""
    return _alone(rows[~crafted_elsewhere(rows)])


def _sources(rows: DataFrame) -> Series:
    empty = Series("", index=rows.index, dtype=object)
    return rows["source"].astype(object).fillna("") if "source" in rows else empty


def _alone(rows: DataFrame) -> DataFrame:
    return rows.assign(attack=[split_attack(attack)[0] for attack in rows["attack"]])
