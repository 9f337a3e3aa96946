"""How much of the skipped work becomes saved time: a panel for every kernel and shape."""

import matplotlib as mpl
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter
from pandas import DataFrame

from robustdyn.labels import count
from robustdyn.reports.style import INK, SOFT, grid, label_outer, legend_above, rc, write_below

COLORS = {"cpp": "#d7432e", "cuda": "#2a9d8f", "chunked": "#f2a03d", "torch": "#2f6fb7"}
STYLES = {"random": "-", "blocky": "--"}
TICKS = (0.05, 0.1, 0.25, 0.5, 1.0)


def kernel_efficiency(rows: DataFrame) -> Figure:
    """Return the figure, with the attribute `caption`.

    Args:
        rows: one per case, mask, active fraction and implementation, with the fields of
            `robustdyn.bench.kernels.KernelRow`.
    """
    with mpl.rc_context(rc()):
        panels = list(rows.groupby("case", sort=False))
        figure, axes = grid(len(panels))
        most = max(1.05, 1.08 * rows["efficiency"].max())
        for ax, (case, group) in zip(axes, panels, strict=True):
            _panel(ax, group, most)
            ax.set_title(case)
        label_outer(axes, "active part of the work", "efficiency")
        legend_above(figure, _handles(rows))
        write_below(figure, _caption(rows))
    return figure


def _panel(ax: Axes, rows: DataFrame, most: float) -> None:
    ax.axhline(1.0, color=SOFT, lw=0.8)
    for (name, mask), line in rows.groupby(["implementation", "mask"]):
        line = line.sort_values("active")
        color = COLORS.get(str(name), INK)
        ax.fill_between(
            line["active"], line["efficiency_low"], line["efficiency_high"], color=color, alpha=0.12
        )
        style = {"color": color, "ls": STYLES[str(mask)], "lw": 1.4}
        sns.lineplot(data=line, x="active", y="efficiency", ax=ax, **style)
        chosen = line[line["dispatched"]]
        ax.plot(chosen["active"], chosen["efficiency"], "o", color=color, ms=4, mec="white")
    bound = rows[rows["mask"] == "random"].dropna(subset="ceiling").sort_values("active")
    ax.plot(bound["active"], bound["ceiling"], ":", color=INK, lw=1.2)
    ax.set_xscale("log")
    ax.set_xlim(TICKS[0] * 0.85, 1.15)
    ax.set_ylim(0, most)
    ax.xaxis.set_major_locator(FixedLocator(TICKS))
    ax.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set(xlabel="", ylabel="")


def _handles(rows: DataFrame) -> list[Line2D]:
    names = [name for name in COLORS if name in set(rows["implementation"])]
    handles = [Line2D([], [], color=COLORS[name], label=name) for name in names]
    if rows["mask"].nunique() > 1:
        handles += [Line2D([], [], color=INK, ls=STYLES[m], label=f"{m} mask") for m in STYLES]
    handles.append(Line2D([], [], color=INK, marker="o", ls="", label="what the dispatcher runs"))
    if rows["ceiling"].notna().any():
        handles.append(Line2D([], [], color=INK, ls=":", label="limit of memory traffic"))
    return handles


def _caption(rows: DataFrame) -> str:
    first = rows.iloc[0]
    busy = 1 - rows["steady"].mean()
    device = first["device"].upper()
    text = (
        "Efficiency = active part / (time / time of torch's dense operation), timed in turn: 1 if"
        f" skipped work is saved time. {device}, {count(first['threads'], 'thread')},"
        f" {first['dtype']}; medians and quartiles of {first['rounds']} rounds."
    )
    return f"{text} The machine was busy: {busy:.0%} of the dense times stray." if busy else text
