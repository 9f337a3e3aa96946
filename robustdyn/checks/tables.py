"""Flags of lines in a table that say less than they seem to."""

from collections.abc import Iterator

from pandas import DataFrame

from robustdyn.checks.flag import LINE, Subject, flag, number_of, per_line
from robustdyn.labels import count, dynamic
from robustdyn.metrics import headroom_recovered


@flag(
    raised_if="one line holds a sample several times with the same seed",
    means="Attacks that differ in something unknown were averaged into one line.",
    do="Report them apart, or give the suite one set of parameters per attack.",
)
def mixed_variants(rows: DataFrame) -> Iterator[Subject]:
    again = rows.duplicated([*LINE, "split", "seed", "sample_id"], keep=False)
    yield from per_line(rows[again], lambda group: count(group["cell"].nunique(), "cell"))


@flag(
    raised_if="every clean sample of a dynamic model already costs the maximum",
    means="Headroom recovered is NaN: there is nothing to take back.",
    do="Choose an operating point at which the model saves compute.",
)
def no_headroom(rows: DataFrame) -> Iterator[Subject]:
    moving = dynamic(rows)
    none = headroom_recovered(moving).isna().groupby([moving[c] for c in LINE]).transform("all")
    yield from per_line(moving[none], number_of("sample"))
