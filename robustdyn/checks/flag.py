"""What a flag is, how a check defines one, and what checks have in common."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from pandas import DataFrame, Series

from robustdyn.labels import count, dynamic
from robustdyn.sources import crafted_elsewhere

LINE = ["model", "dataset", "attack_label", "threat"]
TOLERANCE = 0.002  # of accuracies and shares, as in AutoAttack's black-box check


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


def flag(*, raised_if: str, means: str, do: str) -> Callable[[Check], Check]:
    """Define the flag of the decorated check, named as the function."""

    def define(check: Check) -> Check:
        FLAGS.append(Definition(check.__name__, raised_if, means, do, check))
        return check

    return define


def per_line(rows: DataFrame, detail: Callable[[DataFrame], str]) -> Iterator[Subject]:
    """Yield one subject per line of the table that has rows here."""
    for (model, dataset, attack, threat), group in rows.groupby(LINE):
        yield Subject(model, dataset, attack, threat, detail(group))


def number_of(noun: str) -> Callable[[DataFrame], str]:
    """Return the detail that counts the rows of a line as so many of a noun."""
    return lambda group: count(len(group), noun)


def known_rows(rows: DataFrame, *columns: str) -> DataFrame:
    """Return the rows that hold a value in every one of the columns."""
    if not set(columns) <= set(rows):
        return rows.iloc[:0].assign(**{c: Series(dtype=float) for c in columns})
    return rows[rows[list(columns)].notna().all(axis=1)]


def hostile_rows(rows: DataFrame, aim: str) -> DataFrame:
    """Return the rows of attacks with that aim, crafted on the model that they judge.

    Of those on compute, the rows of dynamic models only.
    """
    found = rows[(rows["aim"] == aim) & (rows["eps"] > 0) & ~crafted_elsewhere(rows)]
    return dynamic(found) if aim == "compute" else found
