"""Flags of numbers that cannot be right, whatever the attack."""

from collections.abc import Iterator

import numpy as np
from pandas import DataFrame

from robustdyn.checks.flag import Subject, flag, known_rows, number_of, per_line


@flag(
    raised_if="the MACs of a static model differ between clean and attacked input",
    means="The model is not static, or its MACs are counted wrongly. No compute number is safe.",
    do="Check the model's registration and its trace against FlopCounterMode.",
)
def static_moved(rows: DataFrame) -> Iterator[Subject]:
    moved = rows[rows["static"].astype(bool) & rows["valid"]]
    yield from per_line(moved[moved["adv_macs"] != moved["clean_macs"]], number_of("sample"))


@flag(
    raised_if="the MACs of a sample are NaN or infinite",
    means="Something in the evaluation of this cell went wrong; means leave these samples out.",
    do="Run the cell again and look at the model's trace.",
)
def not_a_number(rows: DataFrame) -> Iterator[Subject]:
    numbers = rows[["clean_macs", "adv_macs", "max_macs"]].to_numpy(dtype=float)
    yield from per_line(rows[~np.isfinite(numbers).all(axis=1)], number_of("row"))


@flag(
    raised_if="a sample costs more than the reachable maximum",
    means="The maximum is wrong, and with it headroom recovered.",
    do="Check the maxima that the model's shares state.",
)
def above_maximum(rows: DataFrame) -> Iterator[Subject]:
    most = rows[["clean_macs", "adv_macs"]].max(axis=1)
    yield from per_line(rows[most > rows["max_macs"] * (1 + 1e-9)], number_of("sample"))


@flag(
    raised_if="the model's thresholds were fitted on the split that is evaluated",
    means="The operating point was chosen with the answers at hand: clean numbers are too good.",
    do="Fit thresholds on the calibration split, or evaluate on another.",
)
def fitted_on_test(rows: DataFrame) -> Iterator[Subject]:
    known = known_rows(rows, "fitted_on")
    yield from per_line(known[known["fitted_on"] == known["split"]], lambda g: g["split"].iloc[0])


@flag(
    raised_if="the clean prediction or the clean MACs of a sample differ between cells",
    means="The model is randomised or coupled over the batch, or its weights changed in between.",
    do="Run all cells with the same weights; judge a randomised model by repeated passes.",
)
def clean_differs(rows: DataFrame) -> Iterator[Subject]:
    keys = ["model", "dataset", "split", "sample_id"]
    values = rows.groupby(keys)[["clean_macs", "clean_pred"]].transform("nunique")
    yield from per_line(rows[(values > 1).any(axis=1)], number_of("sample"))


@flag(
    raised_if="two passes over the same clean input gave other logits, answers or MACs",
    means="The model is randomised, and every sample was judged by one pass: its luck is in the"
    " numbers, and gradients point where the noise did.",
    do="Judge by repeated passes, and attack the expectation (eot).",
)
def randomised_judged_once(rows: DataFrame) -> Iterator[Subject]:
    known = known_rows(rows, "repeatable")
    yield from per_line(known[~known["repeatable"].astype(bool)], number_of("sample"))


@flag(
    raised_if="an attacked input is not finite, out of bounds or outside the threat",
    means="The attack broke its own rules. These samples count as not attacked.",
    do="Mend or drop the attack; its numbers are too optimistic for the model.",
)
def invalid_rows(rows: DataFrame) -> Iterator[Subject]:
    yield from per_line(rows[~rows["valid"]], number_of("row"))
