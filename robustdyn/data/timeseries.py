"""The `.ts` text format of the time series archives: one series a line, channels before label."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from robustdyn.errors import UserError


class SeriesFile(NamedTuple):
    """The content of one `.ts` file."""

    series: list[np.ndarray]  # float64 (T, F) each; T may differ
    labels: np.ndarray  # int64 (N,), positions in `classes`
    classes: tuple[str, ...]


def read_ts(path: Path) -> SeriesFile:
    """Return the labelled series of `path`; lines are `v,v,v:v,v,v:...:label`, ':' per channel.

    Raises UserError where the file has no classes, unequal channels or values that are no numbers
    (missing values and time stamps are not supported).
    """
    classes: tuple[str, ...] = ()
    series, labels = [], []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        line = line.strip()
        if line.lower().startswith("@classlabel"):
            classes = tuple(line.split()[2:])
        if not line or line[0] in "#@":
            continue
        *channels, label = line.split(":")
        try:
            values = np.array([channel.split(",") for channel in channels], dtype=np.float64)
            labels.append(classes.index(label))
        except ValueError as error:
            raise UserError(
                f"'{path}', line {number}: {error}.",
                "Every line needs channels of equal length and a label named in @classLabel.",
            ) from error
        series.append(values.T)
    if not series:
        raise UserError(f"'{path}' holds no series.", "Give a .ts file with an @data section.")
    return SeriesFile(series, np.array(labels, dtype=np.int64), classes)
