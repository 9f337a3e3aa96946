"""What commands print: JSON, columns and trees on stdout, notes on stderr."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

import click


def print_json(value: Any) -> None:
    """Print `value` as JSON on stdout."""
    click.echo(json.dumps(value, indent=2))


def note(text: str) -> None:
    """Say something about the work on stderr, where it does not mix with data."""
    click.echo(text, err=True)


def columns(lines: Iterable[Sequence[str]], indent: str = "") -> str:
    """Return lines of cells as text, every column but the last as wide as its widest cell."""
    rows = [list(line) for line in lines]
    if not rows:
        return ""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]) - 1)]
    return "\n".join(
        indent
        + "  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[-1]]).rstrip()
        for row in rows
    )


def facts(pairs: Iterable[tuple[str, object]]) -> str:
    """Return "name   value" lines, without those whose value is empty."""
    return columns([(name, str(value)) for name, value in pairs if value not in ("", None, ())])


def megamacs(macs: float) -> str:
    """Return for example "12.40 M"."""
    return f"{macs / 1e6:.2f} M" if macs >= 1e5 else f"{macs / 1e3:.2f} k"
