"""How fast compute rises as the attacker may change more."""

from matplotlib.figure import Figure
from pandas import DataFrame

from robustdyn.labels import dynamic
from robustdyn.reports.frames import attacked
from robustdyn.reports.over_eps import curves, has_curves
from robustdyn.reports.registry import register_figure


def _has_dynamic_curves(rows: DataFrame) -> bool:
    return has_curves(dynamic(rows))


@register_figure(applies=_has_dynamic_curves, order=50)
def compute_over_eps(rows: DataFrame) -> Figure:
    """Compute over eps."""
    return curves(
        dynamic(attacked(rows)),
        clean=lambda line, end: line[f"clean_macs{end}"] / line["max_macs"],
        attacked=lambda line, end: line[f"adv_macs{end}"] / line["max_macs"],
        ylabel="mean MACs (of maximum)",
        text="Mean MACs as a share of the reachable maximum; static models would stay at 100 %.",
    )
