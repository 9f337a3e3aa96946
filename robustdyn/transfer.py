"""Transfer: attacks crafted on one model, judged on others of the same data."""

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
from torch import nn

from robustdyn import attacks
from robustdyn.attacks.objectives import Objective, Value
from robustdyn.data import Dataset
from robustdyn.errors import UserError
from robustdyn.evaluation import evaluate
from robustdyn.registry import create_model
from robustdyn.threat import Threat

Progress = Callable[[int], None]


def transfer(
    models: Sequence[str | nn.Module],
    data: Dataset,
    *,
    attack: str = "pgd",
    threat: Threat,
    objective: str | Objective | Value | None = None,
    estimator: str | None = None,
    seed: int = 0,
    batch_size: int = 64,
    progress: Progress | None = None,
    **params: Any,
) -> pd.DataFrame:
    """Return one row per sample and (source, target) pair: crafted on source, judged on target.

    The rows are those of `evaluate`, the model being the target, with a column `source` more; the
    attack is called for example "pgd from skipnet". A model is its own target too: these rows are
    those of `evaluate`. Each attack is run once per source. `uses_gradient` says whether the
    target was asked for one, so a transfer that does more harm than the target's own attack raises
    the flag of a black box that wins.

    Args:
        models: names of registered models, or modules with names or classes of their own; at least
            two, all for this data.
        data, attack, threat, objective, estimator, seed, batch_size, params: as in `evaluate`.
        progress: called with the number of samples just judged, of len(models) ** 2 * len(data).

    Raises:
        UserError: if there are fewer than two models, two of one name, or one for other data.
    """
    named = _named(models, data)
    method = attacks.get(attack)
    parts = []
    for source in named:
        crafted = attacks.crafted_on(named[source], method, source)
        for target in (source, *(name for name in named if name != source)):
            rows = evaluate(
                named[target],
                data,
                attack=crafted,
                threat=threat,
                objective=objective,
                estimator=estimator,
                seed=seed,
                batch_size=batch_size,
                progress=progress,
                **params,
            )
            parts.append(rows)
    return pd.concat(parts, ignore_index=True)


def _named(models: Sequence[str | nn.Module], data: Dataset) -> dict[str, nn.Module]:
    name = data.info.name
    built = [create_model(m, name) if isinstance(m, str) else m for m in models]
    named: dict[str, nn.Module] = {}
    for model in built:
        spec = getattr(model, "spec", None)
        own = spec.name if spec else type(model).__name__
        if own in named:
            raise UserError(f"Two of the models are named '{own}'.", "Give each model once.")
        if getattr(model, "dataset", name) != name:
            raise UserError(
                f"The model '{own}' is made for '{model.dataset}', not for '{name}'.",
                "Transfer is between models of the same data.",
            )
        named[own] = model
    if len(named) < 2:
        raise UserError("Transfer needs at least two models.", "Name one more.")
    return named
