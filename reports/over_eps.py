"""Lines over eps, from the clean value at 0: shared by the figures of accuracy and compute."""

from collections.abc import Callable

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from pandas import DataFrame, Series

from robustdyn.labels import eps_label
from robustdyn.metrics import summarize
from robustdyn.reports.frames import PANEL
from robustdyn.reports.style import (
    CLEAN,
    MOST_BANDS,
    captioned,
    grid,
    label_outer,
    legend,
    looks,
    name_panels,
)

Value = Callable[[Series, str], float]  # a line of a summary and "", "_low" or "_high" -> y


def has_curves(rows: DataFrame) -> bool:
    """Return whether any attack was run at more than one eps."""
    rows = rows[rows["attack"] != "clean"]
    keys = ["model", "dataset", "attack", "objective", "norm"]
    return bool(rows.groupby(keys)["eps"].nunique().gt(1).any())


def curves(rows: DataFrame, *, clean: Value, attacked: Value, ylabel: str, text: str) -> Figure:
    """Return one panel per model and norm, one line per attack that has several eps.

    Args:
        rows: labelled rows without clean cells.
        clean: the value at eps 0.
        attacked: the value at an eps.
        ylabel: of all panels; the values are fractions, shown as percentages.
        text: of the caption.
    """
    keys = ["model", "dataset", "attack_label", "norm"]
    rows = rows[rows.groupby(keys)["eps"].transform("nunique") > 1]
    rows = rows.assign(threat=rows["norm"].map({"linf": "L∞", "l2": "L2"}).fillna(rows["norm"]))
    styles = looks(rows)
    bands = len(styles) <= MOST_BANDS
    panels = list(rows.groupby([PANEL[0], "norm", PANEL[1], PANEL[2]]))
    figure, axes = grid(len(panels))
    for ax, ((_, norm, _, _), panel) in zip(axes, panels, strict=True):
        lines = summarize(panel, by=["attack_label", "eps"])
        start = lines.iloc[0]
        for label, line in lines.groupby("attack_label"):
            x = [0.0, *line["eps"]]
            low, y, high = (
                [clean(start, end), *(attacked(at, end) for _, at in line.iterrows())]
                for end in ("_low", "", "_high")
            )
            look = styles[label]
            if bands:
                ax.fill_between(x, low, high, color=look.color, alpha=0.13, lw=0)
            ax.plot(x, y, look.marker + "-", color=look.color, mec="white", mew=0.5)
        ax.plot(0, clean(start, ""), styles[CLEAN].marker, color=styles[CLEAN].color, zorder=4)
        ax.set_ylim(-0.03, 1.03)
        ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        _ticks(ax, norm, sorted(panel["eps"].unique()))
    label_outer(axes, "eps", ylabel)
    common = name_panels(axes, [(key[0], key[2], key[3]) for key, _ in panels])
    legend(figure, styles)
    where = "Bands: 95 % bootstrap intervals over samples" if bands else "Intervals: see the table"
    return captioned(figure, rows, f"{common} {text} {where}; eps 0 is the clean network.")


def _ticks(ax: Axes, norm: str, eps: list[float]) -> None:
    """Put ticks at the eps that were attacked, leaving out those that would touch."""
    shown = [0.0]
    for value in reversed(eps):
        if all(abs(value - other) > 0.16 * eps[-1] for other in shown):
            shown.append(value)
    ax.set_xticks(shown, ["0" if value == 0 else eps_label(norm, value) for value in shown])
