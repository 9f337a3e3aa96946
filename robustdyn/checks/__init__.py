"""Reliability flags: reasons to doubt a number, each with its cause, its meaning and a remedy.

A flag is a check of rows. Some need what `robustdyn.evaluation` finds out about model and attack on
the way (gradients at the clean input, a second pass, the objective's curve); rows that lack those
columns, as older files do, raise none of these. The checks follow AutoAttack's and those of the
Indicators of Attack Failure (Pintor et al. 2022, arXiv:2106.09947), for accuracy and for compute.
"""

from collections.abc import Sequence

from pandas import DataFrame

# Imported in the order in which flags are listed: the most serious first.
from robustdyn.checks import accounting as _accounting  # isort: skip
from robustdyn.checks import gradients as _gradients  # isort: skip
from robustdyn.checks import convergence as _convergence  # isort: skip
from robustdyn.checks import tables as _tables  # isort: skip
from robustdyn.checks.flag import FLAGS, Flag, Subject
from robustdyn.labels import labelled

del _accounting, _convergence, _gradients, _tables

__all__ = ["FLAGS", "Flag", "Subject", "find_flags", "flag_table"]


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
