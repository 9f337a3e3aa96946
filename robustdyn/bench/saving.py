"""Writes what a benchmark measured: a table, the same as JSON, and its figure."""

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from pandas import DataFrame

from robustdyn.folders import make_writable, partial_path, put, write_json
from robustdyn.provenance import provenance
from robustdyn.reports.rendering import render


def save(
    rows: Sequence[Mapping[str, Any]],
    figure: Figure,
    out: Path,
    name: str,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Write OUT/NAME.csv, NAME.json, NAME.png and NAME.svg, each whole or not at all.

    Args:
        rows: the lines of the table.
        figure: of it, with the attribute `caption`.
        out: the folder; made if it is missing.
        name: of the files.
        more: what else the JSON says, beside the machine, the caption and the rows.

    Raises:
        UserError: if the folder cannot be written.
    """
    make_writable(out, "Results")
    png, svg = render(figure)
    _write(DataFrame(rows).to_csv(index=False).encode(), out / f"{name}.csv")
    _write(png, out / f"{name}.png")
    _write(svg, out / f"{name}.svg")
    about = {
        "machine": machine(),
        "caption": figure.caption,  # type: ignore[attr-defined]
        **(more or {}),
    }
    write_json({**about, "rows": [*rows]}, out / f"{name}.json")


def machine() -> dict[str, Any]:
    """Return what decides a time: versions, processor, GPU."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return provenance() | {
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "gpu": gpu,
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _write(content: bytes, path: Path) -> None:
    partial = partial_path(path)
    partial.write_bytes(content)
    put(partial, path)
