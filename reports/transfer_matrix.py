"""What an attack crafted on one model does to the others."""

from collections.abc import Iterator, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from pandas import DataFrame

from robustdyn.labels import labelled
from robustdyn.metrics import summarize
from robustdyn.reports.registry import register_figure
from robustdyn.reports.style import COMPUTE_MAP, PAGE, SOFT, captioned, label_outer
from robustdyn.sources import transferred

COLUMNS = ("aim", "dataset", "attack_label", "threat")
MEASURED = {"compute": "headroom recovered", "accuracy": "accuracy lost"}
NOTHING = "#eceef2"  # no headroom, or not run
_SMALL, _SMALLEST = 0.36, 0.22  # inches of a square beside other panels, and of one with a number
_LARGE, _WIDE = 0.75, 2.2  # inches of a square and of a matrix that are enough
_BAR = 1.0  # inches for the colours


def _shown(rows: DataFrame) -> DataFrame:
    rows = labelled(transferred(rows))
    return rows[rows["aim"].isin(list(MEASURED))]


def _applies(rows: DataFrame) -> bool:
    return not transferred(rows).empty and not _shown(rows).empty


@register_figure(applies=_applies, order=70, transfers=True)
def transfer_matrix(rows: DataFrame) -> Figure:
    """Transfer: crafted on one model, judged on all."""
    shown = _shown(rows)
    panels = list(_matrices(shown))
    figure, axes, square = _figure([matrix for _, matrix in panels])
    colors = mpl.colormaps[COMPUTE_MAP].with_extremes(bad=NOTHING)
    settings = {(dataset, threat) for (_, dataset, _, threat), _ in panels}
    for ax, ((aim, dataset, attack, threat), matrix) in zip(axes, panels, strict=True):
        image = ax.imshow(matrix, cmap=colors, vmin=0, vmax=1)
        ax.set_xticks(
            range(matrix.shape[1]), matrix.columns, rotation=50, ha="right", rotation_mode="anchor"
        )
        ax.set_yticks(range(matrix.shape[0]), matrix.index)
        where = f"\n{dataset}, {threat}" if len(settings) > 1 else ""
        ax.set_title(f"{attack}:\n{MEASURED[aim]}{where}")
        ax.grid(visible=False)
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        if square >= _SMALLEST:
            _write(ax, matrix.to_numpy())
    bar = figure.colorbar(
        image,
        ax=axes,
        pad=0.015,
        fraction=0.03,
        aspect=figure.get_figheight() / 0.2,
        format=PercentFormatter(1.0, decimals=0, symbol=" %"),
    )
    bar.set_label("harm done to the target", color=SOFT)
    bar.outline.set_visible(False)
    label_outer(axes, "judged on", "crafted on", shared_y=False)
    common = "" if len(settings) > 1 else "{}, {}. ".format(*settings.pop())
    text = (
        f"{common}Lines: the model that an attack was crafted on; columns: the model that it was"
        " judged on. Where they are the same it is the attack proper, and that alone is in the"
        " other figures. Headroom recovered is a mean over samples; accuracy lost is clean minus"
        " robust accuracy. Numbers are per cent. Grey: a static model has no headroom, or the pair"
        " was not run."
    )
    return captioned(figure, shown, text)


def _matrices(rows: DataFrame) -> Iterator[tuple[tuple[str, str, str, str], DataFrame]]:
    """Yield what each panel shows, and its matrix, sources by targets."""
    lines = summarize(rows, by=[*COLUMNS, "source", "model"], resamples=1)
    lines["accuracy lost"] = lines["clean_accuracy"] - lines["robust_accuracy"]
    lines["headroom recovered"] = lines["headroom_recovered"]
    for key, group in lines.groupby(list(COLUMNS)):
        matrix = group.pivot(index="source", columns="model", values=MEASURED[str(key[0])])
        both = sorted({*matrix.index} & {*matrix.columns})  # first, so that they have a diagonal
        sources, targets = ([*both, *sorted({*names} - {*both})] for names in matrix.axes)
        yield key, matrix.reindex(index=sources, columns=targets).astype(float)


def _figure(matrices: Sequence[DataFrame]) -> tuple[Figure, list[Axes], float]:
    """Return a figure with a panel for each matrix, its panels, and the side of a square in inches.

    As many panels stand side by side as leave room to read.
    """
    lines, columns = (max(matrix.shape[k] for matrix in matrices) for k in (0, 1))
    names = 0.4 + 0.065 * max(len(name) for m in matrices for axis in m.axes for name in axis)
    room = {k: ((PAGE - _BAR) / k - names) / columns for k in range(1, min(len(matrices), 3) + 1)}
    floors = -(-len(matrices) // max((k for k, side in room.items() if side >= _SMALL), default=1))
    beside = -(-len(matrices) // floors)
    square = min(room[beside], max(_SMALL, min(_LARGE, _WIDE / columns)))
    width = beside * (square * columns + names) + _BAR
    height = floors * (square * lines + names + 0.6)
    figure = Figure(figsize=(width, height), layout="compressed")
    axes = figure.subplots(floors, beside, squeeze=False).ravel()
    for spare in axes[len(matrices) :]:
        figure.delaxes(spare)
    return figure, list(axes[: len(matrices)]), square


def _write(ax: Axes, matrix: np.ndarray) -> None:
    for (row, column), value in np.ndenumerate(matrix):
        if np.isfinite(value):
            ink = "white" if value > 0.65 else "#1f2430"
            text = str(round(100 * value))
            ax.text(column, row, text, color=ink, ha="center", va="center", fontsize=7.5)
