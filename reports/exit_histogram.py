"""Early exits under attack: where the samples leave."""

import numpy as np
import seaborn as sns
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter
from pandas import DataFrame, Series

from robustdyn.reports.frames import (
    at_reference_threat,
    attacked,
    clean_samples,
    panel_rows,
)
from robustdyn.reports.registry import register_figure
from robustdyn.reports.style import (
    CLEAN,
    COMPUTE_MAP,
    captioned,
    grid,
    label_outer,
    legend_above,
    looks,
    name_panels,
)


def _has_exits(rows: DataFrame) -> bool:
    return bool(((rows["attack"] != "clean") & (rows["clean_exit"] >= 0)).any())


@register_figure(applies=_has_exits, order=70)
def exit_histogram(rows: DataFrame) -> Figure:
    """Exits taken, clean and attacked."""
    rows = at_reference_threat(attacked(rows[rows["clean_exit"] >= 0]))
    names = list(looks(rows))
    exits = int(rows[["clean_exit", "adv_exit"]].to_numpy().max()) + 1
    colors = sns.color_palette(COMPUTE_MAP, exits + 1)[:exits]
    panels = list(panel_rows(rows))
    figure, axes = grid(len(panels), columns=3, height=0.24 * len(names) + 0.75)
    for ax, (_, panel) in zip(axes, panels, strict=True):
        taken = {CLEAN: clean_samples(panel)["clean_exit"]}
        taken |= {label: group["adv_exit"] for label, group in panel.groupby("attack_label")}
        for row, name in enumerate(names):
            if name in taken:
                _bar(ax, row, _shares(taken[name], exits), colors)
        ax.set_yticks(range(len(names)), names)
        ax.set(xlim=(0, 1), ylim=(len(names) - 0.5, -0.5))
        ax.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        ax.grid(visible=False)
        ax.tick_params(axis="y", length=0)
        ax.spines["left"].set_visible(False)
    label_outer(axes, "samples that leave at each exit", "")
    common = name_panels(axes, [key for key, _ in panels])
    handles = [Patch(color=color, label=f"exit {k}") for k, color in enumerate(colors)]
    legend_above(figure, handles)
    text = f"{common} Share of samples by exit taken, first exit (0) on the left: redder is later."
    return captioned(figure, rows, text)


def _shares(exits: Series, count: int) -> np.ndarray:
    """Return the share of samples that took each of `count` exits."""
    return np.bincount(exits.astype(int), minlength=count) / len(exits)


def _bar(ax, row: int, shares: np.ndarray, colors) -> None:
    ends = np.cumsum(shares)
    for share, end, color in zip(shares, ends, colors, strict=True):
        ax.barh(row, share, left=end - share, height=0.78, color=color, lw=0)
        if share > 0.09:
            dark = np.dot(to_rgb(color), (0.3, 0.59, 0.11)) < 0.55
            ink = "white" if dark else "#1f2430"
            ax.text(
                end - share / 2,
                row,
                f"{100 * share:.0f}",
                color=ink,
                ha="center",
                va="center",
                fontsize=7.5,
            )
