"""What an attack crafted on one model does to the others."""

from collections.abc import Iterator

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from pandas import DataFrame

from robustdyn.labels import labelled
from robustdyn.metrics import summarize
from robustdyn.reports.registry import register_figure
from robustdyn.reports.style import COMPUTE_MAP, SOFT, captioned, grid, label_outer

COLUMNS = ("aim", "dataset", "attack_label", "threat")
MEASURED = {"compute": "headroom recovered", "accuracy": "accuracy lost"}


def _transferred(rows: DataFrame) -> DataFrame:
    """Return the rows of transfers, labelled with the attack alone, without its source."""
    if "source" not in rows:
        return rows.iloc[:0]
    rows = rows[rows["source"].notna() & (rows["source"] != "")]
    pairs = zip(rows["attack"], rows["source"], strict=True)
    return rows.assign(attack=[name.removesuffix(f" from {source}") for name, source in pairs])


def _applies(rows: DataFrame) -> bool:
    return not _transferred(rows).empty


@register_figure(applies=_applies, order=70)
def transfer_matrix(rows: DataFrame) -> Figure:
    """Transfer: crafted on one model, judged on all."""
    shown = labelled(_transferred(rows))
    shown = shown[shown["aim"].isin(list(MEASURED))]
    panels = list(_matrices(shown))
    side = 0.36 * max(len(matrix) for _, matrix in panels) + 1.5
    figure, axes = grid(len(panels), columns=3, height=max(2.4, side))
    for ax, ((aim, dataset, attack, threat), matrix) in zip(axes, panels, strict=True):
        image = ax.imshow(matrix, cmap=COMPUTE_MAP, vmin=0, vmax=1)
        ax.set_xticks(range(matrix.shape[1]), matrix.columns, rotation=40, ha="right")
        ax.set_yticks(range(matrix.shape[0]), matrix.index)
        ax.set_title(f"{attack}: {MEASURED[aim]}\n{dataset}, {threat}")
        ax.grid(visible=False)
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        _write(ax, matrix.to_numpy())
    bar = figure.colorbar(image, ax=axes, pad=0.015, format=PercentFormatter(1.0, decimals=0))
    bar.set_label("harm done to the target", color=SOFT)
    bar.outline.set_visible(False)
    label_outer(axes, "judged on", "crafted on", shared_y=False)
    text = (
        "Lines: the model that an attack was crafted on; columns: the model that it was judged on,"
        " the diagonal being the attack proper. Headroom recovered is a mean over samples; accuracy"
        " lost is clean minus robust accuracy. Numbers in the cells are per cent; static models"
        " have no headroom and stay empty."
    )
    return captioned(figure, shown, text)


def _matrices(rows: DataFrame) -> Iterator[tuple[tuple[str, str, str, str], DataFrame]]:
    """Yield what each panel shows, and its matrix, sources by targets."""
    lines = summarize(rows, by=[*COLUMNS, "source", "model"], resamples=1)
    lines["accuracy lost"] = lines["clean_accuracy"] - lines["robust_accuracy"]
    lines["headroom recovered"] = lines["headroom_recovered"]
    for key, group in lines.groupby(list(COLUMNS)):
        matrix = group.pivot(index="source", columns="model", values=MEASURED[str(key[0])])
        names = sorted({*matrix.index, *matrix.columns})
        yield key, matrix.reindex(index=names, columns=names).astype(float)


def _write(ax, matrix: np.ndarray) -> None:
    for (row, column), value in np.ndenumerate(matrix):
        if np.isfinite(value):
            ink = "white" if value > 0.65 else "#1f2430"
            text = f"{100 * value:.0f}"
            ax.text(column, row, text, color=ink, ha="center", va="center", fontsize=7.5)
