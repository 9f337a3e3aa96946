"""Speed-up by MACs against speed-up by time: a point for every model, clean and attacked."""

import matplotlib as mpl
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from pandas import DataFrame

from robustdyn.labels import count, threat_label
from robustdyn.reports.style import INK, RULE, SLOW, SOFT, legend_above, rc, write_below

GAP = 0.033  # of the panel's height, from one name to the next


def realised_speedup(rows: DataFrame) -> Figure:
    """Return the figure, with the attribute `caption`.

    Args:
        rows: one per model, with the fields of `robustdyn.bench.models.ModelRow`.
    """
    with mpl.rc_context(rc()):
        figure = Figure(figsize=(8.4, 6.6), layout="constrained")
        ax = figure.subplots()
        _points(ax, rows)
        _axes(ax, rows)
        _names(ax, rows)
        legend_above(
            figure,
            [
                Line2D([], [], color=INK, marker="o", ls="", label="clean"),
                Line2D([], [], color=SLOW, marker="^", ls="", label="under attack"),
                Line2D([], [], color=SOFT, label="time follows the MACs"),
            ],
        )
        write_below(figure, _caption(rows))
    return figure


def _points(ax: Axes, rows: DataFrame) -> None:
    pairs = (*("theoretical", "realised", "attacked_theoretical", "attacked_realised"),)
    for x, y, x_adv, y_adv in rows[[*pairs]].to_numpy():
        ax.plot((x, x_adv), (y, y_adv), color=SLOW, lw=0.8, alpha=0.4)
    ax.vlines(rows["theoretical"], rows["realised_low"], rows["realised_high"], color=INK, lw=1)
    for (x, y), color, marker in ((pairs[:2], INK, "o"), (pairs[2:], SLOW, "^")):
        sns.scatterplot(data=rows, x=x, y=y, ax=ax, color=color, marker=marker, s=34, zorder=3)


def _axes(ax: Axes, rows: DataFrame) -> None:
    across = _limits(rows[["theoretical", "attacked_theoretical"]])
    up = _limits(rows[["realised_low", "realised_high", "attacked_realised"]])
    ends = (min(across[0], up[0]), max(across[1], up[1]))
    ax.plot(ends, ends, color=SOFT, lw=1)
    ax.axhline(1, color=RULE, lw=1.2, zorder=0)
    ax.set(xscale="log", yscale="log", xlim=across, ylim=up)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    ax.set_xlabel("theoretical speed-up: dense MACs / mean MACs, logarithmic")
    ax.set_ylabel("realised speed-up: dense time / sparse time, logarithmic")


def _limits(values: DataFrame) -> tuple[float, float]:
    return 0.88 * min(1.0, values.min().min()), 1.15 * values.max().max()


def _names(ax: Axes, rows: DataFrame) -> None:
    """Name each model beside the panel, in the order of its clean point, with a line to it."""
    low, high = (np.log(bound) for bound in ax.get_ylim())
    ordered = rows.sort_values("realised")
    heights: list[float] = []
    for y in (np.log(ordered["realised"]) - low) / (high - low):
        heights.append(max(y, heights[-1] + GAP) if heights else y)
    over = max(0.0, heights[-1] - 0.99)
    for (x, y, name), place in zip(
        ordered[["theoretical", "realised", "model"]].to_numpy(), heights, strict=True
    ):
        ax.annotate(
            *(str(name), (x, y), (1.02, place - over)),
            textcoords="axes fraction",
            fontsize=7.5,
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": SOFT,
                "lw": 0.4,
                "shrinkB": 3,
                "relpos": (0.0, 0.5),  # from the left of the name, however steep
            },
        )


def _caption(rows: DataFrame) -> str:
    first = rows.iloc[0]
    sizes = sorted(rows["batch"].unique())
    batch = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    attacks = ", ".join(sorted(rows["attack"].unique()))
    return (
        "One line per model, from its clean to its attacked batch: on the diagonal skipped MACs are"
        f" saved time, below 1 sparse execution is slower than dense. {attacks} at"
        f" {threat_label('linf', 8 / 255)}. CPU, {count(first['threads'], 'thread')}, batch"
        f" {batch}, seed 0;"
        f" medians of {first['rounds']} rounds, bars are quartiles."
    )
