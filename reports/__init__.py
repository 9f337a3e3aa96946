"""Figures, tables and the HTML report: pure functions of the rows of an evaluation."""

if __name__ != "robustdyn.reports":
    raise ImportError(
        "This folder is the package robustdyn.reports: `import robustdyn.reports`, not `reports`."
    )

from robustdyn.reports.html import write_report
from robustdyn.reports.registry import get_figure, list_figures, register_figure
from robustdyn.reports.tables import headline_table, summary_table

__all__ = [
    "get_figure",
    "headline_table",
    "list_figures",
    "register_figure",
    "summary_table",
    "write_report",
]
