"""All models on one plane: what each costs, how right it is, and how slow an attack makes it."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from pandas import DataFrame

from robustdyn.labels import unit_for
from robustdyn.reports.frames import at_reference_threat, attacked, has_attacks
from robustdyn.reports.registry import register_figure
from robustdyn.reports.style import INK, PAGE, SLOW, SOFT, captioned, legend_above

APART = 0.15  # inches between two names, so that they can be read


@register_figure(applies=has_attacks, order=15)
def model_plane(rows: DataFrame) -> Figure:
    """All models: accuracy, compute, and the compute under attack."""
    rows = at_reference_threat(attacked(rows))
    datasets = list(rows.groupby("dataset", sort=True))
    heights = [max(2.2, 0.21 * group["model"].nunique()) for _, group in datasets]
    size = (PAGE, sum(heights) + 0.9 * len(heights) + 0.5)
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(rect=(0, 0, 0.97, 1)))
    axes = figure.subplots(len(datasets), 1, squeeze=False, height_ratios=heights).ravel()
    for ax, (dataset, group), inches in zip(axes, datasets, heights, strict=True):
        _plane(ax, _points(group), inches)
        ax.set_title(f"{dataset}, {', '.join(sorted(group['threat'].unique()))}")
        ax.set_ylabel("clean accuracy")
    legend_above(
        figure,
        [
            Line2D([], [], color=INK, marker="o", ls="", label="clean"),
            Line2D([], [], color=SLOW, marker="^", ls="", label="under its slowest attack"),
            Line2D([], [], color=SOFT, marker="|", ms=9, ls="", label="reachable maximum"),
        ],
    )
    text = (
        "One line per model, at its clean accuracy: mean MACs of clean inputs, under the attack of"
        " this threat with the largest mean, and at the reachable maximum. The shorter the red way,"
        " the more robust its saving. Models that tie are drawn apart by less than half of what one"
        " sample counts, so that none hides another."
    )
    return captioned(figure, rows, text)


def _points(rows: DataFrame) -> DataFrame:
    """Return one line per model: accuracy and mean MACs clean, slowest and at the maximum."""
    clean = rows.drop_duplicates(["model", "sample_id"])
    found = clean.assign(accuracy=clean["clean_pred"] == clean["label"]).groupby("model")
    means = found[["accuracy", "clean_macs", "max_macs"]].mean()
    slow = rows.groupby(["model", "attack_label", "threat"])["adv_macs"].mean()
    means = means.assign(slow_macs=slow.groupby("model").max(), samples=found.size())
    return means.sort_values(["accuracy", "clean_macs"])


def _plane(ax: Axes, points: DataFrame, inches: float) -> None:
    unit = unit_for(points["max_macs"].max())
    low, high = points["accuracy"].min(), points["accuracy"].max()
    room = max(0.12 * (high - low), 0.01, 1 / points["samples"].min())
    ax.set_ylim(low - room, high + room)
    ax.set_xscale("log")
    across = ax.get_yaxis_transform()
    drawn = _drawn_apart(points)
    heights = _name_heights(ax, drawn, APART / inches)
    for name, y, height in zip(points.index, drawn, heights, strict=True):
        macs = points.loc[name, ["clean_macs", "slow_macs", "max_macs"]] / unit.macs
        clean, slow, full = (float(value) for value in macs)
        ax.plot((clean, full), (y, y), color=SOFT, lw=0.8, alpha=0.6)
        ax.plot((clean, max(clean, slow)), (y, y), color=SLOW, lw=1.4, alpha=0.7)
        ax.plot(full, y, "|", color=SOFT, ms=9)
        ax.plot(slow, y, "^", color=SLOW, mec="white", mew=0.5, ms=6, zorder=3)
        ax.plot(clean, y, "o", color=INK, mec="white", mew=0.5, ms=6, zorder=4)
        ax.annotate(
            f"{name}  {points.loc[name, 'accuracy']:.1%}",
            (full, y),
            (1.02, height),
            textcoords=across,
            fontsize=8,
            va="center",
            arrowprops={"arrowstyle": "-", "color": SOFT, "lw": 0.4, "alpha": 0.5},
        )
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:.1%}" if y <= 1 else ""))
    ax.set_xlabel(f"mean MACs ({unit.plural}), logarithmic")


def _drawn_apart(points: DataFrame) -> list[float]:
    """Return where each model stands: at its accuracy; equal ones within half a sample of it."""
    tied = points.groupby("accuracy")
    place = (tied.cumcount() + 0.5) / tied["samples"].transform("size") - 0.5  # in (-1/2, 1/2)
    return list(points["accuracy"] + 0.9 * place / points["samples"])


def _name_heights(ax: Axes, drawn: list[float], gap: float) -> list[float]:
    """Return where each name stands: near its model, but a part of the panel from the next.

    Halfway between the names pushed up from below and those pushed down from above.
    """
    low, high = ax.get_ylim()
    gap *= high - low
    up, down = list(drawn), list(drawn)
    for k in range(1, len(drawn)):
        up[k] = max(up[k], up[k - 1] + gap)
    for k in reversed(range(len(drawn) - 1)):
        down[k] = min(down[k], down[k + 1] - gap)
    heights = [(one + other) / 2 for one, other in zip(up, down, strict=True)]
    ceiling = high
    for k in reversed(range(len(heights))):  # push back what stands above the panel
        heights[k] = min(heights[k], ceiling)
        ceiling = heights[k] - gap
    return heights
