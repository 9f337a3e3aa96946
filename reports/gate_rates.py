"""Which gates an attack opens."""

import numpy as np
from matplotlib.figure import Figure
from pandas import DataFrame

from robustdyn.reports.frames import (
    at_reference_threat,
    attacked,
    gates_of_kind,
    has_attacks,
    has_gates,
    panel_rows,
    with_gates,
)
from robustdyn.reports.registry import register_figure
from robustdyn.reports.style import (
    CLEAN,
    COMPUTE_MAP,
    captioned,
    grid,
    keep_bar,
    label_outer,
    looks,
    name_panels,
)

ELSEWHERE = ("exit", "step")  # kinds with a figure of their own


def _is_layer_gate(kind: str) -> bool:
    return kind not in ELSEWHERE


def _applies(rows: DataFrame) -> bool:
    return has_attacks(rows) and has_gates(rows, _is_layer_gate)


@register_figure(applies=_applies, order=80)
def gate_rates(rows: DataFrame) -> Figure:
    """Gate rates by layer, clean and attacked."""
    rows = with_gates(at_reference_threat(attacked(rows)), _is_layer_gate)
    names = list(looks(rows))
    panels = list(panel_rows(rows))
    figure, axes = grid(len(panels), columns=2, height=0.2 * len(names) + 0.95)
    for ax, (_, panel) in zip(axes, panels, strict=True):
        rates = _rates(panel, names)
        image = ax.imshow(rates, aspect="auto", cmap=COMPUTE_MAP, vmin=0, vmax=1)
        ax.set_yticks(range(len(names)), names)
        room = 0.42 * figure.get_figwidth() / (0.07 * max(map(len, rates.columns)) + 0.08)
        step = -(-rates.shape[1] // max(1, int(room)))
        places = range(0, rates.shape[1], step)
        ax.set_xticks(places, [rates.columns[p] for p in places], fontsize=7.5)
        ax.axhline(0.5, color="white", lw=2.5)
        ax.grid(visible=False)
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        if rates.shape[1] <= 2.2 * figure.get_figwidth():
            _write(ax, rates.to_numpy())
    keep_bar(figure, image, axes)
    label_outer(axes, "gate, in the order of the forward pass", "")
    common = name_panels(axes, [key for key, _ in panels])
    text = (
        f"{common} Mean over samples of what each gate keeps, clean in the first line: 0 is always"
        " skipped, 1 always run. Numbers in the cells are per cent."
    )
    return captioned(figure, rows, text)


def _rates(panel: DataFrame, names: list[str]) -> DataFrame:
    """Return the mean keep (names, gates) of one model; NaN for attacks it was not given."""
    gates = gates_of_kind(panel, _is_layer_gate)
    order = gates.sort_values("place").drop_duplicates("gate")["gate"]
    means = gates.pivot_table(index="attack_label", columns="gate", values="adv_gates")
    clean = gates.drop_duplicates(["sample_id", "gate"]).groupby("gate")["clean_gates"].mean()
    means.loc[CLEAN] = clean
    return means.reindex(index=names, columns=order).astype(float)


def _write(ax, rates: np.ndarray) -> None:
    for (row, column), rate in np.ndenumerate(rates):
        if np.isfinite(rate):
            ink = "white" if rate > 0.65 else "#1f2430"
            text = f"{100 * rate:.0f}"
            ax.text(column, row, text, color=ink, ha="center", va="center", fontsize=7)
