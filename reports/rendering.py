"""Figures as bytes: PNG and SVG."""

from io import BytesIO

import matplotlib as mpl
from matplotlib.figure import Figure

from robustdyn.reports.style import rc

PIXELS_PER_INCH = 96  # of a page; the PNG has twice as many


def render(figure: Figure) -> tuple[bytes, bytes]:
    """Return the figure as PNG and SVG, the same bytes every time."""
    with mpl.rc_context(rc()):
        figure.draw_without_rendering()  # lay it out once, for both
        figure.set_layout_engine("none")
        png, svg = BytesIO(), BytesIO()
        figure.savefig(png, format="png", dpi=2 * PIXELS_PER_INCH)
        figure.savefig(svg, format="svg", metadata={"Date": None})
    return png.getvalue(), svg.getvalue()
