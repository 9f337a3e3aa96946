"""Why a model's time falls short of its MACs: three factors, measured."""

from collections.abc import Iterable
from typing import NamedTuple

from robustdyn.bench.models import ModelRow

LARGE = 20e6  # MACs of a sample from which on products should dominate
FAIR = 0.7  # the part of the theoretical speed-up that a large model should realise


class Shortfall(NamedTuple):
    """Factors by which sparse time exceeds its share of the MACs; their product is all of it.

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
    per_mac = row.sparse_seconds * row.product_part / row.executed_macs
    dense_per_mac = row.dense_seconds * row.dense_product_part / row.dense_macs
    return Shortfall(
        more=row.executed_macs / row.macs,
        slower=per_mac / dense_per_mac,
        around=row.dense_product_part / row.product_part,
    )


def falls_short(row: ModelRow) -> bool:
    """Return whether sparse execution is slower than dense, or, of a large model, not fair."""
    large = row.dense_macs >= LARGE
    return row.realised < 1 or (large and row.realised < FAIR * row.theoretical)


def reason(row: ModelRow) -> str:
    """Return what takes the time, the largest factor first."""
    factors = shortfall(row)
    each = 1e6 * row.sparse_seconds * row.product_part / row.products
    dense_each = 1e6 * row.dense_seconds * row.dense_product_part / row.dense_products
    texts = {
        "more": f"runs {factors.more:.2f} times the MACs that its decisions ask for",
        "slower": f"a MAC takes {factors.slower:.2f} times as long, in {row.products} products of"
        f" {each:.0f} us (dense: {row.dense_products} of {dense_each:.0f} us)",
        "around": f"{1 - row.product_part:.0%} of the time is outside products"
        f" (dense: {1 - row.dense_product_part:.0%}), a factor of {factors.around:.2f}",
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
