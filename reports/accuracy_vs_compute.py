"""Both damages in one picture: where each attack moves a network."""

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from pandas import DataFrame, Series

from robustdyn.labels import unit_for
from robustdyn.metrics import summarize
from robustdyn.reports.frames import at_reference_threat, attacked, has_attacks, panel_rows
from robustdyn.reports.registry import register_figure
from robustdyn.reports.style import (
    CLEAN,
    SOFT,
    Look,
    captioned,
    grid,
    label_outer,
    legend,
    looks,
    name_panels,
)


@register_figure(applies=has_attacks, order=20)
def accuracy_vs_compute(rows: DataFrame) -> Figure:
    """Accuracy against compute, clean and attacked."""
    rows = at_reference_threat(attacked(rows))
    styles = looks(rows)
    panels = list(panel_rows(rows))
    figure, axes = grid(len(panels))
    for ax, (_, panel) in zip(axes, panels, strict=True):
        unit = unit_for(panel["max_macs"].max())
        scale = unit.macs
        lines = summarize(panel, by=["attack_label"])
        clean = _point(lines.iloc[0], "clean_macs", "clean_accuracy", scale)
        for _, line in lines.iterrows():
            point = _point(line, "adv_macs", "robust_accuracy", scale)
            look = styles[line["attack_label"]]
            arrow = {"arrowstyle": "-|>", "color": look.color, "lw": 1.1, "alpha": 0.6,
                     "mutation_scale": 8, "shrinkA": 4, "shrinkB": 4}  # fmt: skip
            ax.annotate("", point["at"], clean["at"], arrowprops=arrow)
            _draw(ax, point, look)
        _draw(ax, clean, styles[CLEAN])
        ax.axvline(lines["max_macs"].iloc[0] / scale, color=SOFT, lw=1, ls=(0, (4, 3)))
        ax.set_xlim(0, 1.06 * lines["max_macs"].iloc[0] / scale)
        ax.set_ylim(-0.03, 1.03)
        ax.xaxis.set_major_locator(MaxNLocator(5))
        ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        ax.set_xlabel(f"mean MACs ({unit.plural})")
    label_outer(axes, "", "accuracy")
    common = name_panels(axes, [key for key, _ in panels])
    legend(figure, styles, line=False)
    text = (
        f"{common} Each arrow leads from the clean network to the network under one attack: down is"
        " wrong, right is slow. Crosses: 95 % bootstrap intervals over samples. Dashed: reachable"
        " maximum of the MACs."
    )
    return captioned(figure, rows, text)


def _point(line: Series, macs: str, accuracy: str, scale: float) -> dict[str, tuple]:
    """Return the point and the ends of its intervals from one line of a summary."""
    return {
        "at": (line[macs] / scale, line[accuracy]),
        "x": (line[f"{macs}_low"] / scale, line[f"{macs}_high"] / scale),
        "y": (line[f"{accuracy}_low"], line[f"{accuracy}_high"]),
    }


def _draw(ax, point: dict[str, tuple], look: Look) -> None:
    x, y = point["at"]
    ax.plot(point["x"], (y, y), color=look.color, lw=1.1)
    ax.plot((x, x), point["y"], color=look.color, lw=1.1)
    ax.plot(x, y, look.marker, color=look.color, mec="white", mew=0.6, ms=6.5, zorder=3)
