"""The headline: how much of the compute that a network saves an attack takes back."""

from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter
from pandas import DataFrame

from robustdyn.metrics import summarize
from robustdyn.reports.frames import at_reference_threat, attacked, has_attacks
from robustdyn.reports.registry import register_figure
from robustdyn.reports.style import (
    INK,
    PAGE,
    SOFT,
    Look,
    captioned,
    label_outer,
    legend_above,
    looks,
)

MODELS_PER_PANEL = 16
_LOWEST = -0.5  # the axis ends here; bars below are cut
_FULL_ROOM = 0.5  # height of the line for the models without headroom, in models


class _Panel(NamedTuple):
    title: str
    lines: DataFrame
    models: tuple[str, ...]
    full: tuple[str, ...]  # models whose clean samples already cost the maximum

    @property
    def room(self) -> float:
        return len(self.models) + (_FULL_ROOM if self.full else 0)


@register_figure(applies=has_attacks, order=10)
def headroom_bars(rows: DataFrame) -> Figure:
    """Headroom recovered, by model and attack."""
    rows = at_reference_threat(attacked(rows))
    styles = {label: look for label, look in looks(rows).items() if label != "clean"}
    lines = summarize(rows, by=["dataset", "threat", "model", "attack_label"])
    panels = [
        part
        for (dataset, threat), group in lines.groupby(["dataset", "threat"])
        for part in _panels(f"{dataset}, {threat}", group)
    ]
    columns = 1 if sum(panel.room for panel in panels) <= MODELS_PER_PANEL else 2
    lines_of_panels = [panels[k : k + columns] for k in range(0, len(panels), columns)]
    rooms = [max(panel.room for panel in line) for line in lines_of_panels for _ in line]
    pitch = float(np.clip(6.0 / (len(styles) * max(rooms)), 0.075, 0.19))
    heights = [room * (len(styles) * pitch + 0.12) for room in rooms]
    figure, axes = _figure(heights, columns)
    lowest = np.nan_to_num(lines["headroom_recovered_low"].min())
    floor = max(_LOWEST, min(0.0, 1.1 * float(lowest)))
    for ax, panel, room in zip(axes, panels, rooms, strict=True):
        _draw(ax, panel, styles, floor)
        ax.set_ylim(room - 0.5, -0.5)
    label_outer(axes, "headroom recovered (of the MACs saved when clean)", "", shared_y=False)
    legend_above(figure, [Patch(color=look.color, label=name) for name, look in styles.items()])
    text = (
        "Headroom recovered is (C(x') - C(x)) / (C_max - C(x)): 0 % leaves the compute of the clean"
        " input, 100 % forces full inference. Bars: mean over samples; whiskers: 95 % bootstrap"
        " interval over samples. Static models have no headroom."
    )
    if floor == _LOWEST:
        text += f" Cut at {_LOWEST:.0%}."
    return captioned(figure, rows, text)


def _panels(title: str, lines: DataFrame) -> list[_Panel]:
    """Return the panels of one threat: most recovered first, no headroom last."""
    highest = lines.groupby("model")["headroom_recovered"].max()
    moving = tuple(highest.dropna().sort_values(ascending=False, kind="stable").index)
    full = tuple(highest.index[highest.isna()])
    parts = max(1, -(-len(moving) // MODELS_PER_PANEL))
    size = max(1, -(-len(moving) // parts))
    chunks = [moving[k : k + size] for k in range(0, len(moving), size)] or [()]
    return [_Panel(title, lines, chunk, full if chunk is chunks[-1] else ()) for chunk in chunks]


def _figure(heights: list[float], columns: int) -> tuple[Figure, list[Axes]]:
    """Return a figure of one panel per height in inches, and the panels."""
    lines = [height + 0.35 for height in heights[::columns]]
    size = ((7.4, PAGE)[columns - 1], sum(lines) + 0.8)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(lines), columns, squeeze=False, height_ratios=lines).ravel()
    for spare in axes[len(heights) :]:
        figure.delaxes(spare)
    return figure, list(axes[: len(heights)])


def _draw(ax: Axes, panel: _Panel, styles: dict[str, Look], floor: float) -> None:
    thickness = 0.84 / len(styles)
    known = panel.lines.set_index(["model", "attack_label"])
    for row, model in enumerate(panel.models):
        for k, (label, look) in enumerate(styles.items()):
            if (model, label) not in known.index:
                continue
            line = known.loc[(model, label)]
            value, low, high = (
                max(line[f"headroom_recovered{end}"], floor) for end in ("", "_low", "_high")
            )
            y = row - 0.42 + thickness * (k + 0.5)
            ax.barh(y, value, height=thickness * 0.86, color=look.color, lw=0)
            ax.plot([low, high], [y, y], color=INK, lw=0.8, solid_capstyle="butt")
    places, names = list(map(float, range(len(panel.models)))), list(panel.models)
    if panel.full:
        several = len(panel.full) > 1
        places.append(len(names) - 0.5 + _FULL_ROOM / 2)
        names.append(f"{len(panel.full)} more models" if several else panel.full[0])
        ax.text(0.01, places[-1], "no headroom", va="center", color=SOFT, fontsize=8)
    ax.set_yticks(places, names)
    ax.set_xlim(floor, 1.0)
    ax.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    ax.grid(axis="y", visible=False)
    ax.tick_params(axis="y", length=0)
    ax.axvline(0, color=SOFT, lw=0.8)
    ax.set_title(panel.title)
