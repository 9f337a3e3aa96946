"""The headline table for a terminal: no intervals, headings on two lines."""

from pandas import DataFrame

_TEXTS = 4  # the first columns, Model to Threat, stand left; numbers stand right


def terminal_table(headline: DataFrame) -> str:
    """Return the lines of `reports.headline_table` as text."""
    heads = [name.rpartition(" ") for name in headline.columns]
    rows = [[head for head, _, _ in heads], [tail for _, _, tail in heads]]
    rows += [[str(value).split(" [")[0] for value in line] for line in headline.to_numpy()]
    widths = [max(len(row[k]) for row in rows) for k in range(len(heads))]
    rows.insert(2, ["-" * width for width in widths])
    return "\n".join(
        "  ".join(
            cell.ljust(width) if k < _TEXTS else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
