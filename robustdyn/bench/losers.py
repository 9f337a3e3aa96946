"""Why a model's time falls short of its MACs: three factors, measured."""

from collections.abc import Iterable
from typing import NamedTuple

from robustdyn.bench.models import ModelRow

LARGE = 20e6  # MACs of a sample from which on products should dominate
FAIR = 0.7  # the part of the theoretical speed-up that a large model should realise


class Shortfall(NamedTuple):
    """Factors by which sparse time exceeds its share of the MACs; together about all of it.

    Attributes:
        more: MACs that ran / MACs that the decisions ask for.
        slower: seconds per MAC in products, sparse / dense.
        around: time / time in products, sparse / dense.
    """

    more: float
    slower: float
    around: float


def shortfall(row: ModelRow) -> Shortfall:
    """Return the factors of one model."""
    sparse_rate = row.batch * row.executed_macs / row.product_seconds
    dense_rate = row.batch * row.dense_macs / row.dense_product_seconds
    around = row.sparse_seconds / row.product_seconds
    return Shortfall(
        row.executed_macs / row.macs,
        dense_rate / sparse_rate,
        around / (row.dense_seconds / row.dense_product_seconds),
    )


def falls_short(row: ModelRow) -> bool:
    """Return whether sparse execution is slower than dense, or, of a large model, not fair."""
    large = row.dense_macs >= LARGE
    return row.realised < 1 or (large and row.realised < FAIR * row.theoretical)


def reason(row: ModelRow) -> str:
    """Return in one sentence what takes the time, the largest factor first."""
    factors = shortfall(row)
    around, dense_around = (
        1 - row.product_seconds / row.sparse_seconds,
        1 - row.dense_product_seconds / row.dense_seconds,
    )
    size, dense_size = (
        1e6 * row.product_seconds / row.products,
        1e6 * row.dense_product_seconds / row.dense_products,
    )
    texts = {
        "more": f"runs {factors.more:.2f} times the MACs that its decisions ask for",
        "slower": f"a MAC takes {factors.slower:.2f} times as long, in {row.products} products of"
        f" {size:.0f} us (dense: {row.dense_products} of {dense_size:.0f} us)",
        "around": f"{around:.0%} of the time is outside products (dense: {dense_around:.0%}),"
        f" a factor of {factors.around:.2f}",
    }
    order = sorted(texts, key=lambda name: -getattr(factors, name))
    return "; ".join(texts[name] for name in order if getattr(factors, name) > 1.02) or "noise"


def losers(rows: Iterable[ModelRow]) -> list[str]:
    """Return a line for every model that falls short: its speed-ups and the reason."""
    return [
        f"{row.model}: {row.realised:.2f} times as fast, {row.theoretical:.2f} by MACs."
        f" Why: {reason(row)}."
        for row in rows
        if falls_short(row)
    ]
