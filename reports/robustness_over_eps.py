"""How fast accuracy falls as the attacker may change more."""

from matplotlib.figure import Figure
from pandas import DataFrame

from robustdyn.reports.frames import attacked
from robustdyn.reports.over_eps import curves, has_curves
from robustdyn.reports.registry import register_figure


@register_figure(applies=has_curves, order=40)
def robustness_over_eps(rows: DataFrame) -> Figure:
    """Robust accuracy over eps."""
    return curves(
        attacked(rows),
        clean=lambda line, end: line[f"clean_accuracy{end}"],
        attacked=lambda line, end: line[f"robust_accuracy{end}"],
        ylabel="robust accuracy",
        text="Share of samples that are right both clean and attacked.",
    )
