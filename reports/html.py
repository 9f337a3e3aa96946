"""The report: one self-contained page, beside its figures and tables as files."""

import base64
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pandas import DataFrame

from robustdyn.checks import Flag, find_flags, flag_table
from robustdyn.errors import UserError
from robustdyn.labels import AIMS, aim_of, eps_label, listed, with_cell
from robustdyn.reports.findings import find
from robustdyn.reports.registry import list_figures
from robustdyn.reports.rendering import PIXELS_PER_INCH, render
from robustdyn.reports.tables import (
    COLUMNS,
    line_labels,
    summary_table,
    worst_case_samples,
    written,
)
from robustdyn.sources import split_attack

DEFINITION = (
    *("model", "dataset", "split", "attack", "objective", "estimator"),
    *("norm", "eps", "seed"),
)


def write_report(rows: DataFrame, out: Path, *, title: str, about: Mapping[str, Any]) -> Path:
    """Write OUT/index.html, OUT/figures/*.png and *.svg and OUT/tables/*.csv; return the page.

    The page needs nothing but itself: styles, script and figures are inside. Every file is written
    beside its place and then moved there. Equal rows give equal tables and figures.

    Args:
        rows: one row per sample and attack.
        out: folder of the report; made if it is missing.
        title: of the page.
        about: what to say about the run, in order, such as versions, suite, seed, device, command
            and date. A mapping under "cells", cell id -> definition, tells how the cells were made.

    Raises:
        UserError: if there are no rows.
    """
    if rows.empty:
        raise UserError("There are no rows to report.", "Run a suite first: `robustdyn run NAME`.")
    rows = with_cell(rows)
    about = dict(about)
    definitions = about.pop("cells", {})
    summary = summary_table(rows)
    flags = find_flags(rows)
    tables = {"summary": summary, "samples_worst_case": worst_case_samples(rows)}
    tables["flags"] = flag_table(flags)
    for name, table in tables.items():
        _write(out / "tables" / f"{name}.csv", table.to_csv(index=False).encode())
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.j2").render(
        title=title,
        overview=_overview(rows),
        findings=find(rows, summary),
        flags=flags,
        columns=COLUMNS,
        lines=_lines(summary, flags),
        figures=_figures(rows, out / "figures"),
        tables=list(tables),
        about=about,
        cells=_cells(rows, definitions),
    )
    _write(out / "index.html", page.encode())
    return out / "index.html"


def _overview(rows: DataFrame) -> dict[str, int]:
    """Return the counts under the title."""
    attacks = rows.loc[rows["attack"] != "clean", ["attack", "objective", "estimator"]]
    attacks = attacks.assign(attack=[split_attack(attack)[0] for attack in attacks["attack"]])
    samples = rows[["dataset", "split", "sample_id"]].drop_duplicates()
    return {
        "models": rows["model"].nunique(),
        "datasets": rows["dataset"].nunique(),
        "attacks": len(attacks.drop_duplicates()),
        "samples": len(samples),
        "cells": rows.loc[rows["cell"] != "", "cell"].nunique(),
    }


def _lines(summary: DataFrame, flags: list[Flag]) -> list[dict[str, Any]]:
    """Return the lines of the headline table: labels, texts, intervals and keys to sort by."""
    raised: dict[tuple[str, ...], list[str]] = {}
    for flag in flags:
        for subject in flag.subjects:
            key = (subject.model, subject.dataset, subject.attack, subject.threat)
            raised.setdefault(key, []).append(flag.name)
    labels = line_labels(summary)
    lines = []
    for (_, line), key in zip(summary.iterrows(), labels.itertuples(index=False), strict=True):
        cells = []
        for column in COLUMNS:
            value = float(line[column.metric])
            text, interval = written(line, column)
            sort = "" if math.isnan(value) else repr(value)
            cells.append({"text": text, "interval": interval, "sort": sort})
        lines.append(
            {
                "labels": list(key),
                "eps": float(line["eps"]),
                "n": int(line["n"]),
                "cells": cells,
                "flags": raised.get(tuple(key), []),
                "aim": aim_of(line["attack"], line["objective"]),
            }
        )
    order = AIMS.index
    return sorted(lines, key=lambda line: (line["labels"][1::-1], order(line["aim"])))


def _figures(rows: DataFrame, folder: Path) -> list[dict[str, Any]]:
    """Write the figures that apply as PNG and SVG, remove old ones; return what the page needs."""
    shown = []
    for spec in list_figures():
        paths = {kind: folder / f"{spec.name}.{kind}" for kind in ("png", "svg")}
        if not spec.applies(rows):
            for path in paths.values():
                path.unlink(missing_ok=True)
            continue
        figure = spec.draw(rows)
        png, svg = render(figure)
        _write(paths["png"], png)
        _write(paths["svg"], svg)
        shown.append(
            {
                "name": spec.name,
                "title": spec.title,
                "caption": getattr(figure, "caption", ""),
                "cells": getattr(figure, "cells", ()),
                "data": base64.b64encode(png).decode(),
                "width": round(figure.get_figwidth() * PIXELS_PER_INCH),
                "height": round(figure.get_figheight() * PIXELS_PER_INCH),
            }
        )
    return shown


def _cells(rows: DataFrame, definitions: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return id, definition and range of samples of every cell."""
    cells = []
    for cell, group in rows[rows["cell"] != ""].groupby("cell", sort=True):
        first = group.iloc[0]
        given = definitions.get(str(cell), {})
        definition = {name: first[name] for name in DEFINITION if first[name] != ""}
        definition["eps"] = eps_label(first["norm"], first["eps"])
        more = {
            name: _text(value)
            for name, value in given.items()
            if name not in DEFINITION and value not in ("", {})
        }
        ids = group["sample_id"]
        cells.append(
            {
                "id": cell,
                "definition": definition,
                "more": more,
                "samples": f"{len(ids)} (ids {ids.min()} to {ids.max()})",
            }
        )
    return cells


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_text(part)}" for name, part in value.items())
    if isinstance(value, (list, tuple)):
        return listed(value)
    return str(value)


def _write(path: Path, content: bytes) -> None:
    """Write the file beside its place, then move it there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
