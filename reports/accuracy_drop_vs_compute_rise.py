"""All models and attacks in one picture: wrong, slow, or both."""

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from pandas import DataFrame

from robustdyn.metrics import summarize
from robustdyn.reports.frames import at_reference_threat, attacked, has_attacks
from robustdyn.reports.registry import register_figure
from robustdyn.reports.style import SOFT, captioned, grid, looks

FAMILY_MARKERS = "oD^sPvX*ph<>"


@register_figure(applies=has_attacks, order=30)
def accuracy_drop_vs_compute_rise(rows: DataFrame) -> Figure:
    """Accuracy drop against compute rise."""
    rows = at_reference_threat(attacked(rows))
    styles = {label: look for label, look in looks(rows).items() if label != "clean"}
    families = sorted(rows["family"].unique())
    markers = {f: FAMILY_MARKERS[k % len(FAMILY_MARKERS)] for k, f in enumerate(families)}
    by = ["dataset", "threat", "model", "family", "attack_label"]
    lines = summarize(rows, by=by)
    lines["drop"] = 100 * (lines["clean_accuracy"] - lines["robust_accuracy"])
    panels = list(lines.groupby(["dataset", "threat"]))
    figure, axes = grid(len(panels), columns=2, height=3.8)
    for ax, ((dataset, threat), panel) in zip(axes, panels, strict=True):
        ax.axhline(1.0, color=SOFT, lw=0.9, ls=(0, (4, 3)))
        for line in panel.itertuples():
            ax.plot(
                line.drop,
                line.amplification,
                markers[line.family],
                color=styles[line.attack_label].color,
                mec="white",
                mew=0.6,
                ms=7,
                alpha=0.9,
                clip_on=False,
            )
        ax.set_xlim(-0.04 * panel["drop"].max() - 0.5, 1.08 * panel["drop"].max() + 0.5)
        ax.margins(y=0.12)
        _name_highest(ax, panel)
        ax.set_title(f"{dataset}, {threat}")
        ax.set_xlabel("accuracy drop (percentage points)")
        ax.set_ylabel("amplification (times clean MACs)")
    colors = [Line2D([], [], color=s.color, marker="o", ls="", label=a) for a, s in styles.items()]
    shapes = [Line2D([], [], color=SOFT, marker=m, ls="", label=f) for f, m in markers.items()]
    handles = [_heading("attack"), *colors, _heading(""), _heading("family"), *shapes]
    legend = figure.legend(handles=handles, loc="outside right upper", alignment="left")
    for text in legend.get_texts():
        text.set_fontweight("bold" if text.get_text() in ("attack", "family") else "normal")
    figure.set_figwidth(figure.get_figwidth() + 2.2)
    note = (
        "One point per model and attack; amplification is the mean over samples of C(x') / C(x),"
        " named where it is the largest. Dashed: compute unchanged, where every static model must"
        " stay. Intervals are in the table."
    )
    return captioned(figure, rows, note)


def _heading(text: str) -> Line2D:
    return Line2D([], [], ls="", label=text or " ")


def _name_highest(ax, panel: DataFrame, most: int = 3) -> None:
    """Write the names of the models slowed most beside their highest point, without overlaps."""
    highest = panel.sort_values("amplification", ascending=False).drop_duplicates("model")
    low, high = panel["amplification"].min(), panel["amplification"].max()
    placed: list[float] = []
    for line in highest[highest["amplification"] > 1.0].head(most).itertuples():
        if any(abs(line.amplification - y) < 0.06 * (high - low) for y in placed):
            continue
        placed.append(line.amplification)
        right = line.drop > 0.6 * panel["drop"].max()
        ax.annotate(
            line.model,
            (line.drop, line.amplification),
            (-7 if right else 7, 0),
            textcoords="offset points",
            ha="right" if right else "left",
            va="center",
            fontsize=8,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
            zorder=4,
        )
