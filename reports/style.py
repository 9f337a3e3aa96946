"""The look of the figures: type, colours of attacks, grids of panels, captions."""

from collections.abc import Sequence
from functools import cache
from textwrap import fill
from typing import Any, NamedTuple

import numpy as np
import seaborn as sns
from matplotlib import font_manager
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from pandas import DataFrame

from robustdyn.labels import AIMS, sample_note

INK, SOFT, RULE, SLOW = "#1f2430", "#6b7280", "#d9dce3", "#d7432e"
CLEAN = "clean"
MOST_BANDS = 7  # with more lines in a panel, bands only hide each other
COMPUTE_MAP = "YlOrRd"  # warmer is more compute
PAGE = 10.4  # inches, the width of a figure of many panels
_FONTS = ("Inter", "Helvetica Neue", "Arial", "Liberation Sans", "DejaVu Sans")
_LOOKS = {  # aim -> colours and markers, in the order in which its attacks take them
    "clean": (("#1f2430",), ("o",)),
    "noise": (("#9ca3af", "#6b7280", "#c3c8d0", "#4b5563", "#dde1e6"), ("X", "P", "v", "<", ">")),
    "accuracy": (
        ("#2f6fb7", "#7ab3e0", "#17406f", "#2a9d8f", "#8f9be0"),
        ("s", "D", "P", "p", "h"),
    ),
    "compute": ((SLOW, "#f2a03d", "#931f3d", "#e377a2", "#b5651d"), ("^", "v", "<", ">", "*")),
    "worst case": (("#6b3fa0",), ("d",)),
}


class Look(NamedTuple):
    """Colour and marker of one attack, the same in every figure of a report."""

    color: str
    marker: str


@cache
def _font() -> str:
    known = set(font_manager.get_font_names())
    return next(name for name in _FONTS if name in known)


def rc() -> dict[Any, Any]:
    """Return the matplotlib settings of all figures; nobody's global settings are touched."""
    return sns.axes_style("ticks") | {
        "font.family": [_font(), "DejaVu Sans"] if _font() != "DejaVu Sans" else ["DejaVu Sans"],
        "font.size": 9.0,
        "axes.titlesize": 9.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.labelsize": 9.0,
        "axes.labelcolor": INK,
        "axes.edgecolor": SOFT,
        "axes.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": "#eceef2",
        "grid.linewidth": 0.8,
        "text.color": INK,
        "xtick.color": SOFT,
        "ytick.color": SOFT,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "xtick.labelsize": 8.0,
        "ytick.labelsize": 8.0,
        "xtick.major.size": 3.0,
        "ytick.major.size": 3.0,
        "legend.frameon": False,
        "legend.fontsize": 8.5,
        "lines.linewidth": 1.6,
        "lines.markersize": 5.0,
        "figure.facecolor": "white",
        "savefig.facecolor": "white",
        "text.parse_math": False,  # a name may hold a dollar sign
        "svg.hashsalt": "robustdyn",
    }


def looks(rows: DataFrame) -> dict[str, Look]:
    """Return the look of every attack of the labelled rows, by label, clean first.

    Clean is near black, noise grey, attacks on accuracy are blue, attacks on compute red.
    """
    attacks = rows[["attack_label", "aim"]].drop_duplicates().sort_values("attack_label")
    found = {CLEAN: Look(*(options[0] for options in _LOOKS["clean"]))}
    for aim in AIMS[1:]:
        colors, markers = _LOOKS[aim]
        for k, label in enumerate(attacks.loc[attacks["aim"] == aim, "attack_label"]):
            found[label] = Look(colors[k % len(colors)], markers[k % len(markers)])
    return found


def grid(
    count: int, *, columns: int | None = None, height: float = 2.3
) -> tuple[Figure, list[Axes]]:
    """Return a figure of `count` panels that fills the page's width, and its panels.

    Args:
        count: number of panels.
        columns: most panels side by side; left out, the number that leaves fewest gaps.
        height: of one row of panels in inches.
    """
    if count == 1 and columns is None:
        height *= 1.25
    columns = min(columns or _fewest_gaps(count), count)
    lines = -(-count // columns)
    width = {1: 5.6, 2: 8.0}.get(columns, PAGE)
    figure = Figure(figsize=(width, lines * height + 0.5), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for spare in axes[count:]:
        figure.delaxes(spare)
    return figure, list(axes[:count])


def _fewest_gaps(count: int) -> int:
    if count <= 4:
        return count
    options = (4, 3) if count <= 12 else (5, 4)
    return min(options, key=lambda columns: -count % columns)


def label_outer(axes: Sequence[Axes], xlabel: str, ylabel: str, *, shared_y: bool = True) -> None:
    """Label the panels at the left and those with no panel below; hide the others' y ticks.

    Args:
        axes: from `grid`.
        xlabel, ylabel: with units; an empty one leaves the panels' own.
        shared_y: whether all panels have the same y axis.
    """
    columns = axes[0].get_gridspec().ncols  # type: ignore[union-attr]
    for k, ax in enumerate(axes):
        if k % columns == 0:
            ax.set_ylabel(ylabel)
        elif shared_y:
            ax.tick_params(axis="y", labelleft=False)
        if xlabel and k + columns >= len(axes):
            ax.set_xlabel(xlabel)


def name_panels(axes: Sequence[Axes], keys: Sequence[tuple[str, str, str]]) -> str:
    """Give each panel the name of its model; return what all panels have in common.

    Dataset and threat become a second line of the titles where the panels differ in them.
    """
    settings = {(dataset, threat) for dataset, _, threat in keys}
    for ax, (dataset, model, threat) in zip(axes, keys, strict=True):
        ax.set_title(model, pad=16 if len(settings) > 1 else 6)
        if len(settings) > 1:
            note = f"{dataset}, {threat}"
            ax.annotate(
                note, (0, 1), (0, 4), "axes fraction", "offset points", fontsize=8, color=SOFT
            )
    if len(settings) == 1:
        dataset, threat = settings.pop()
        return f"{dataset}, {threat}."
    return "Dataset and threat above each panel."


def legend(
    figure: Figure, looks_: dict[str, Look], *, marker: bool = True, line: bool = True
) -> None:
    """Put one legend of the attacks above the panels: markers, lines or both."""
    handles = [
        Line2D(
            [],
            [],
            color=look.color,
            marker=look.marker if marker else "",
            ls="-" if line else "",
            lw=1.6 if marker else 2.4,
            label=label,
        )
        for label, look in looks_.items()
    ]
    legend_above(figure, handles)


def legend_above(figure: Figure, handles: Sequence[Artist]) -> None:
    """Put one legend above the panels, in as many columns as fit."""
    labels = [str(handle.get_label()) for handle in handles]
    lines = 1
    while lines < len(labels) and _width(labels, lines) > figure.get_figwidth():
        lines += 1
    figure.legend(
        handles=list(handles),
        loc="outside upper left",
        ncols=-(-len(labels) // lines),
        columnspacing=1.4,
        handlelength=1.6,
        handletextpad=0.5,
    )


def _width(labels: Sequence[str], lines: int) -> float:
    """Return about how many inches a legend of so many lines takes; it fills column by column."""
    columns = np.array_split(np.array([len(label) for label in labels]), -(-len(labels) // lines))
    return sum(0.5 + 0.066 * column.max() for column in columns)


def keep_bar(figure: Figure, image: AxesImage, axes: Sequence[Axes]) -> None:
    """Explain the colours of a picture of mean keeps beside the panels."""
    shrink = min(1.0, 2.2 / figure.get_figheight())
    bar = figure.colorbar(image, ax=axes, shrink=shrink, pad=0.015, anchor=(0, 1))
    bar.set_label("mean keep", color=SOFT)
    bar.outline.set_visible(False)


def write_below(figure: Figure, text: str) -> None:
    """Write the caption under the panels, for a figure that stands on no page; keep it too."""
    width = round(16.5 * figure.get_figwidth())  # characters
    figure.supxlabel(fill(text, width), x=0.01, ha="left", fontsize=8, color=SOFT)
    figure.caption = text  # type: ignore[attr-defined]


def captioned(figure: Figure, rows: DataFrame, text: str) -> Figure:
    """Return the figure with `caption` (text, n and seeds) and `cells` (the ids it shows)."""
    figure.caption = f"{text} {sample_note(rows)}"  # type: ignore[attr-defined]
    figure.cells = tuple(sorted(set(rows["cell"]) - {""}))  # type: ignore[attr-defined]
    return figure
