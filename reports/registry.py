"""The registry of figures: a function of the rows becomes a figure of every report."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from importlib import import_module
from inspect import getdoc
from pkgutil import iter_modules

import matplotlib as mpl
from matplotlib.figure import Figure
from pandas import DataFrame

import robustdyn.reports
from robustdyn.errors import UserError, suggest
from robustdyn.reports.style import rc
from robustdyn.sources import on_itself

Draw = Callable[[DataFrame], Figure]
Applies = Callable[[DataFrame], bool]

_FIGURES: dict[str, "FigureSpec"] = {}


@dataclass(frozen=True)
class FigureSpec:
    """A registered figure.

    Attributes:
        name: the name of the function; also the name of the files.
        title: the first line of its docstring.
        order: figures with a small order stand first in the report.
        function: rows -> Figure with the attributes `caption` (str) and `cells` (ids it shows).
        applies: whether the rows hold what the figure shows.
    """

    name: str
    title: str
    order: int
    function: Draw
    applies: Applies

    def draw(self, rows: DataFrame) -> Figure:
        """Return the figure of `rows`, in the style of the reports.

        Raises:
            UserError: if the function returned no figure, or one without a caption.
        """
        with mpl.rc_context(rc()):
            figure = self.function(rows)
        if not isinstance(figure, Figure) or not getattr(figure, "caption", ""):
            raise UserError(
                f"The figure '{self.name}' returned {type(figure).__name__} without a caption.",
                "Return a matplotlib Figure whose attribute `caption` gives units, n and seeds.",
            )
        return figure


def _always(rows: DataFrame) -> bool:
    return True


def register_figure(
    function: Draw | None = None,
    *,
    applies: Applies = _always,
    order: int = 100,
    transfers: bool = False,
) -> Callable:
    """Register a function (rows) -> Figure under its name; use with or without arguments.

    Args:
        function: reads no files and calls no models. Its docstring's first line is the title.
        applies: rows -> bool; where it is False the figure is left out of the report.
        order: place in the report.
        transfers: whether it is about attacks crafted on other models than they judge. Other
            figures see the rows without these, as if every attack had been run on its model alone.

    Raises:
        ValueError: if the name is taken or the docstring is missing.
    """
    if function is None:
        return lambda f: register_figure(f, applies=applies, order=order, transfers=transfers)
    name, text = function.__name__, getdoc(function)
    if name in _FIGURES:
        raise ValueError(f"The figure '{name}' is registered twice; rename one of the functions.")
    if not text:
        raise ValueError(f"The figure '{name}' has no docstring; its first line is the title.")
    title = text.splitlines()[0].rstrip(".")
    draw, shows = (function, applies) if transfers else (_of_own(function), _if_own(applies))
    _FIGURES[name] = FigureSpec(name, title, order, draw, shows)
    return function


def _of_own(draw: Draw) -> Draw:
    @wraps(draw)
    def drawn(rows: DataFrame) -> Figure:
        return draw(on_itself(rows))

    return drawn


def _if_own(applies: Applies) -> Applies:
    def shows(rows: DataFrame) -> bool:
        own = on_itself(rows)
        return not own.empty and applies(own)

    return shows


def list_figures() -> list[FigureSpec]:
    """Return all registered figures in the order of the report."""
    _load()
    return sorted(_FIGURES.values(), key=lambda spec: (spec.order, spec.name))


def get_figure(name: str) -> FigureSpec:
    """Return a figure by name.

    Raises:
        UserError: if there is none; suggests a name that is close.
    """
    _load()
    if name not in _FIGURES:
        raise UserError(
            f"Unknown figure '{name}'.",
            f"{suggest(name, _FIGURES)}Known figures: {', '.join(sorted(_FIGURES))}.",
        )
    return _FIGURES[name]


def _load() -> None:
    """Import every file of this package: a figure is registered by being there."""
    for module in iter_modules(robustdyn.reports.__path__):
        import_module(f"robustdyn.reports.{module.name}")
