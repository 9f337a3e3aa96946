"""Not only the mean: how the compute of single samples moves."""

import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from pandas import DataFrame

from robustdyn.labels import dynamic
from robustdyn.reports.frames import (
    at_reference_threat,
    attacked,
    clean_samples,
    has_attacks,
    panel_rows,
)
from robustdyn.reports.registry import register_figure
from robustdyn.reports.style import CLEAN, captioned, grid, label_outer, legend, looks, name_panels


def _applies(rows: DataFrame) -> bool:
    return has_attacks(dynamic(rows))


@register_figure(applies=_applies, order=60)
def macs_distribution(rows: DataFrame) -> Figure:
    """Compute of single samples, clean and attacked."""
    rows = dynamic(at_reference_threat(attacked(rows)))
    styles = looks(rows)
    panels = list(panel_rows(rows))
    figure, axes = grid(len(panels))
    for ax, (_, panel) in zip(axes, panels, strict=True):
        clean = clean_samples(panel)
        shares = {CLEAN: clean["clean_macs"] / clean["max_macs"]}
        for label, group in panel.groupby("attack_label"):
            shares[label] = group["adv_macs"] / group["max_macs"]
        for label in [*(s for s in styles if s in shares and s != CLEAN), CLEAN]:
            sns.ecdfplot(x=shares[label], ax=ax, color=styles[label].color, lw=1.7)
        ax.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="", ylabel="")
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    label_outer(axes, "MACs of a sample (of its maximum)", "samples up to here")
    common = name_panels(axes, [key for key, _ in panels])
    legend(figure, styles, marker=False)
    text = (
        f"{common} Cumulative distribution over samples: the further right a line, the more the"
        " samples cost; a static model would be a step at 100 %."
    )
    return captioned(figure, rows, text)
