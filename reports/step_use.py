"""Sequences under attack: at which time steps the state is updated."""

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from pandas import DataFrame

from robustdyn.metrics import mean_interval
from robustdyn.reports.frames import (
    at_reference_threat,
    attacked,
    gates_of_kind,
    has_attacks,
    has_gates,
    panel_rows,
)
from robustdyn.reports.registry import register_figure
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

FEWEST = 0.1  # a time step is shown if at least this share of the samples reaches it


def _is_step(kind: str) -> bool:
    return kind == "step"


def _applies(rows: DataFrame) -> bool:
    return has_attacks(rows) and has_gates(rows, _is_step)


@register_figure(applies=_applies, order=90)
def step_use(rows: DataFrame) -> Figure:
    """Updates per time step, clean and attacked."""
    rows = at_reference_threat(attacked(rows))
    rows = rows[[any(map(_is_step, kinds)) for kinds in rows["gate_kinds"]]]
    styles = looks(rows)
    bands = len(styles) <= MOST_BANDS
    panels = list(panel_rows(rows))
    figure, axes = grid(len(panels), columns=3)
    for ax, (_, panel) in zip(axes, panels, strict=True):
        gates = gates_of_kind(panel, _is_step)
        clean = gates.drop_duplicates(["sample_id", "place"]).assign(attack_label=CLEAN)
        clean["adv_gates"] = clean["clean_gates"]
        for label, look in styles.items():
            drawn = clean if label == CLEAN else gates[gates["attack_label"] == label]
            if drawn.empty:
                continue
            line = _use(drawn)
            if bands:
                low, high = line["low"], line["high"]
                ax.fill_between(line.index, low, high, color=look.color, alpha=0.12, lw=0)
            ax.plot(line.index, line["mean"], look.marker + "-", color=look.color, ms=3, lw=1.2)
        ax.set_ylim(-0.03, 1.03)
        ax.set_xlim(left=0.5)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    label_outer(axes, "time step", "sequences that update")
    common = name_panels(axes, [key for key, _ in panels])
    legend(figure, styles)
    text = (
        f"{common} Share of the sequences still running that update their state. Time steps that"
        f" fewer than {FEWEST:.0%} of the sequences reach are left out."
    )
    if bands:
        text += " Bands: 95 % bootstrap intervals over samples."
    return captioned(figure, rows, text)


def _use(gates: DataFrame) -> DataFrame:
    """Return mean, low and high by time step (from 1)."""
    least = FEWEST * gates["sample_id"].nunique()
    order = {place: k + 1 for k, place in enumerate(sorted(gates["place"].unique()))}
    lines = {}
    for place, group in gates.groupby("place"):
        samples = group.groupby("sample_id")["adv_gates"].mean()
        if len(samples) >= least:
            lines[order[place]] = mean_interval(samples.to_numpy())
    return DataFrame.from_dict(lines, orient="index", columns=["mean", "low", "high"])
