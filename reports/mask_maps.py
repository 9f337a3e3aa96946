"""Spatial models: where they look, clean and attacked."""

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pandas import DataFrame, Series

from robustdyn.metrics import headroom_recovered
from robustdyn.reports.frames import at_reference_threat, attacked
from robustdyn.reports.registry import register_figure
from robustdyn.reports.style import SOFT, captioned

SAMPLES, MODELS = 6, 4
ROWS = ("image", "mean keep", "attacked", "mean keep")


def _has_maps(rows: DataFrame) -> bool:
    return bool((rows["clean_map"].notna() & (rows["attack"] != "clean")).any())


@register_figure(applies=_has_maps, order=95)
def mask_maps(rows: DataFrame) -> Figure:
    """Where spatial models compute, clean and attacked."""
    rows = at_reference_threat(attacked(rows))
    rows = _most_slowed(rows[rows["clean_map"].notna()])
    blocks = list(rows.groupby(["dataset", "model", "threat"], sort=False))
    total = rows.groupby(["dataset", "model"]).ngroups
    columns = min(2, len(blocks))
    lines = -(-len(blocks) // columns)
    size = (6.4, 12.0)[columns - 1]
    figure = Figure(figsize=(size, 4.4 * lines), layout="constrained")
    parts = figure.subfigures(lines, columns, squeeze=False, wspace=0.02, hspace=0.03).ravel()
    for part, ((dataset, model, threat), block) in zip(parts, blocks, strict=False):
        attack = block["attack_label"].iloc[0]
        title = f"{model}  ({dataset}, {attack}, {threat})"
        part.suptitle(title, fontsize=9.5, fontweight="bold", x=0.02, ha="left")
        axes = part.subplots(4, SAMPLES, squeeze=False)
        for column in range(SAMPLES):
            if column < len(block):
                shown = _column(axes[:, column], block.iloc[column])
            else:
                for ax in axes[:, column]:
                    ax.set_visible(False)
        for ax, name in zip(axes[:, 0], ROWS, strict=True):
            ax.set_ylabel(name, fontsize=8.5)
        bar = part.colorbar(shown, ax=axes, shrink=0.6, pad=0.02)
        bar.set_label("mean keep over the layers", color=SOFT)
        bar.outline.set_visible(False)
    left_out = f" {len(blocks)} of {total} spatial models." if total > len(blocks) else ""
    text = (
        "Rows: image, what the model keeps of it, attacked image, what the model keeps of that;"
        " 0 is skipped in all layers, 1 is run in all. Above: prediction and share of the reachable"
        f" maximum of the MACs. For every model, the attack that recovers most headroom.{left_out}"
    )
    return captioned(figure, rows, text)


def _most_slowed(rows: DataFrame) -> DataFrame:
    """Return up to SAMPLES rows of the strongest attack of the MODELS models slowed most."""
    rows = rows.assign(_headroom=headroom_recovered(rows).fillna(0.0))
    keys = ["dataset", "model", "attack_label", "norm"]
    strength = rows.groupby(keys)["_headroom"].mean().reset_index()
    strength = strength.sort_values("_headroom", ascending=False, kind="stable")
    strength = strength.drop_duplicates(["dataset", "model"]).head(MODELS)
    chosen = strength[keys].merge(rows, on=keys)
    chosen = chosen.drop_duplicates(["dataset", "model", "sample_id"])
    return chosen.groupby(["dataset", "model"], sort=False).head(SAMPLES)


def _column(axes: np.ndarray, row: Series):
    """Draw image, map, attacked image and attacked map of one sample; return the last map."""
    for ax, image in zip(axes[::2], ("image", "adv_image"), strict=True):
        _image(ax, np.reshape(row[image], row["image_shape"]))
    cmap = sns.color_palette("rocket", as_cmap=True)
    for ax, values in zip(axes[1::2], ("clean_map", "adv_map"), strict=True):
        shown = ax.imshow(np.reshape(row[values], row["map_shape"]), cmap=cmap, vmin=0, vmax=1)
    for ax, when in ((axes[0], "clean"), (axes[2], "adv")):
        right = row[f"{when}_pred"] == row["label"]
        share = row[f"{when}_macs"] / row["max_macs"]
        mark = "✓" if right else "✗"
        text = f"{row[f'{when}_pred']} {mark}  {share:.0%}"
        ax.set_title(text, fontsize=8, fontweight="normal", loc="center", pad=3)
    for ax in axes:
        ax.set(xticks=[], yticks=[])
        ax.grid(visible=False)
        ax.spines[:].set_visible(False)
    return shown


def _image(ax: Axes, image: np.ndarray) -> None:
    """Draw an image (C, H, W) in [0, 1]; other numbers of channels than 3 as their mean."""
    if len(image) == 3:
        ax.imshow(np.clip(np.moveaxis(image, 0, -1), 0, 1))
    else:
        ax.imshow(image.mean(axis=0), cmap="gray", vmin=0, vmax=1)
