"""What a gate knows: how much of each network the samples of a class use."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pandas import DataFrame

from robustdyn.reports.frames import (
    attacked,
    clean_samples,
    gates_of_kind,
    has_attacks,
    has_gates,
    with_gates,
)
from robustdyn.reports.registry import register_figure
from robustdyn.reports.style import COMPUTE_MAP, captioned, grid, keep_bar, label_outer


def _any(kind: str) -> bool:
    return bool(kind)


def _applies(rows: DataFrame) -> bool:
    return has_attacks(rows) and has_gates(rows, _any)


@register_figure(applies=_applies, order=85)
def gate_use_by_class(rows: DataFrame) -> Figure:
    """Gate use of clean samples, by class."""
    rows = with_gates(attacked(rows), _any)
    panels = list(rows.groupby(["dataset", "model"], sort=True))
    classes = max(group["label"].nunique() for _, group in panels)
    figure, axes = grid(len(panels), columns=4, height=0.13 * classes + 0.8)
    for ax, ((dataset, model), panel) in zip(axes, panels, strict=True):
        image = _draw(ax, clean_samples(panel))
        ax.set_title(f"{model} ({dataset})" if rows["dataset"].nunique() > 1 else model)
    keep_bar(figure, image, axes)
    label_outer(axes, "gates, in order", "class", shared_y=False)
    text = (
        "Mean over the clean samples of a class of what each gate keeps: 0 is always skipped, 1"
        " always run. Columns of one colour are gates that do not know the class."
    )
    return captioned(figure, rows, text)


def _draw(ax: Axes, samples: DataFrame):
    gates = gates_of_kind(samples, _any).merge(samples[["sample_id", "label"]])
    order = gates.sort_values("place").drop_duplicates("gate")["gate"]
    rates = gates.pivot_table(index="label", columns="gate", values="clean_gates")[list(order)]
    image = ax.imshow(rates, aspect="auto", cmap=COMPUTE_MAP, vmin=0, vmax=1)
    ax.set_yticks(range(len(rates)), [str(label) for label in rates.index], fontsize=7)
    ax.set_xticks([])
    ax.grid(visible=False)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return image
