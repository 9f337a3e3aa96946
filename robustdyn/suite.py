"""Suites and cells: what is to be evaluated, and the id of each piece of that work.

A suite multiplies its lists (models x attacks x eps x ranges of samples) into cells. A cell's id
comes from its definition alone, so the same work has the same id in every plan and every stored
result, and resuming is a set difference. `robustdyn.suites` reads suites from files.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

from robustdyn.data import load_dataset
from robustdyn.errors import UserError, suggest
from robustdyn.registry import ModelSpec, list_models, model_sha256, refuse_broken

ID_VERSION = 1
"""Raise it when the same definition starts to give other numbers (a mended attack, say)."""

IDENTITY = (
    "model",
    "dataset",
    "split",
    "attack",
    "objective",
    "estimator",
    "attack_params",
    "norm",
    "eps",
    "seed",
    "start",
    "stop",
    "weights",
    "source",
    "source_weights",
)
"""Fields of a cell that decide its numbers: they make its id."""

LATER = ("source", "source_weights")
"""Of these, the ones that cells got later: where they are empty they stay out of the id."""

RUNTIME: tuple[str, ...] = ()
"""Fields of a cell that cannot change its numbers, and so stay out of its id."""

Param = int | float | str | bool | list | None


@dataclass(frozen=True)
class Cell:
    """One model x one attack x one threat x one range of samples: the unit of work and of resume.

    Attributes:
        model, dataset, split: as registered.
        attack: such as "pgd", "clean", "torchattacks:PGD".
        objective: what the attack maximises, "" if it has none.
        estimator: the gradient estimator of the gates, "" for the model's own.
        attack_params: sorted (key, value) pairs.
        norm, eps: the threat.
        seed: of the attack's random choices, together with the sample id.
        start, stop: the positions in the dataset, stop excluded.
        weights: SHA-256 of the weights and, of a plug-in, its code: see `model_sha256`.
        source: the model that the attack is crafted on, "" if it is `model` as usual.
        source_weights: of the source, as `weights`; "" without one.
    """

    model: str
    dataset: str
    split: str
    attack: str
    objective: str
    estimator: str
    attack_params: tuple[tuple[str, Param], ...]
    norm: str
    eps: float
    seed: int
    start: int
    stop: int
    weights: str
    source: str = ""
    source_weights: str = ""

    def definition(self) -> dict[str, Any]:
        """Return the identity fields by name, ready for JSON; those of LATER only if not empty."""
        fields = [name for name in IDENTITY if name not in LATER or getattr(self, name)]
        values = {name: getattr(self, name) for name in fields}
        return values | {"attack_params": dict(self.attack_params), "eps": float(self.eps)}

    @cached_property
    def id(self) -> str:
        """16 hex digits: the start of the SHA-256 of the canonical definition and ID_VERSION."""
        versioned = self.definition() | {"id_version": ID_VERSION}
        canonical = json.dumps(versioned, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    @property
    def samples(self) -> int:
        """How many samples the cell holds."""
        return self.stop - self.start

    @property
    def label(self) -> str:
        """A line for people: model, attack, its source, threat and samples."""
        size = f"{self.eps * 255:.3g}/255" if self.norm == "linf" else f"{self.eps:.3g}"
        threat = f"{self.norm} {size}" if self.eps else ""
        source = f"from {self.source}" if self.source else ""
        samples = f"[{self.start}:{self.stop}]"
        parts = (self.model, self.attack, self.objective, source, threat, samples)
        return " ".join(part for part in parts if part)


@dataclass(frozen=True)
class AttackEntry:
    """One [[attacks]] table of a suite: an attack with its parameters and its list of eps.

    `models` are patterns that restrict it to those of the suite's models that fit, which may be
    none; empty means all. `sources` are patterns of the models that it is crafted on, each for all
    models of its own dataset; empty means that it is crafted on the model that it is judged on.
    """

    attack: str
    objective: str
    estimator: str
    norm: str
    eps: tuple[float, ...]
    params: tuple[tuple[str, Param], ...]
    models: tuple[str, ...]
    sources: tuple[str, ...]


@dataclass(frozen=True)
class Suite:
    """What to evaluate. `batch_size` is a runtime setting: it changes no number.

    Attributes:
        name, title: for the run folder and the report.
        models: names, or patterns of names and families such as "spatial.*".
        samples: how many of each model, the first of the split.
        samples_per_cell: the most samples of one cell.
    """

    name: str
    title: str
    models: tuple[str, ...]
    samples: int
    split: str
    seed: int
    samples_per_cell: int
    batch_size: int
    attacks: tuple[AttackEntry, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the resolved suite, ready for JSON."""
        return asdict(self)


def cells(suite: Suite) -> list[Cell]:
    """Return the suite's cells in the order of its lists, duplicates merged.

    Raises:
        UserError: if a model is unknown, its weights are missing or altered, a split is not in its
            dataset, an attack's sources are all of other datasets, or no cell is left.
    """
    specs = _models(suite.models)
    plan = [(entry, _sources_by_target(entry, specs)) for entry in suite.attacks]
    names = {spec.name for spec in specs}
    names |= {name for _, sources in plan for found in sources.values() for name in found if name}
    weights = {
        spec.name: model_sha256(spec, spec.datasets[0])
        for spec in list_models()
        if spec.name in names
    }
    found = [cell for spec in specs for cell in _cells_of_model(suite, spec, plan, weights)]
    if not found:
        raise UserError(
            "Every attack of the suite is restricted to models that are not in it.",
            "Change the `models` of the attacks, or those of the suite.",
        )
    return list({cell.id: cell for cell in found}.values())


def _sources_by_target(entry: AttackEntry, specs: list[ModelSpec]) -> dict[str, list[str]]:
    """Return the sources of an attack by the model that it is judged on: [""] for itself."""
    if entry.models:
        _models(entry.models)  # a misspelt one is refused
    targets = [spec for spec in specs if not entry.models or _matches(spec, entry.models)]
    if not entry.sources or not targets:
        return {target.name: [""] for target in targets}
    sources = _models(entry.sources)
    found = {
        target.name: [s.name for s in sources if s.datasets[0] == target.datasets[0]]
        for target in targets
    }
    if not any(found.values()):
        of_sources, of_targets = (
            ", ".join(sorted({spec.datasets[0] for spec in side})) for side in (sources, targets)
        )
        raise UserError(
            f"The sources of the attack '{entry.attack}' are made for {of_sources}, "
            f"the models that it is judged on for {of_targets}.",
            "Name `sources` and `models` of the same dataset.",
        )
    return found


def _models(patterns: tuple[str, ...]) -> list[ModelSpec]:
    specs: dict[str, ModelSpec] = {}
    for pattern in patterns:
        matching = [spec for spec in list_models() if _matches(spec, (pattern,))]
        if not matching:
            refuse_broken(pattern)
            raise UserError(
                f"No model is named or matches '{pattern}'.",
                f"{suggest(pattern.rstrip('.*'), _branches())}See `robustdyn list models`.",
            )
        for spec in matching:
            specs.setdefault(spec.name, spec)
    return list(specs.values())


def _matches(spec: ModelSpec, patterns: tuple[str, ...]) -> bool:
    """True if a pattern fits the model's name or family, or names a branch above its family."""
    return any(
        fnmatchcase(spec.name, pattern)
        or fnmatchcase(spec.family, pattern)
        or spec.family.startswith(f"{pattern}.")
        for pattern in patterns
    )


def _branches() -> set[str]:
    """The names of all models, and of all branches of the taxonomy."""
    families = [spec.family.split(".") for spec in list_models()]
    branches = {".".join(f[: k + 1]) for f in families for k in range(len(f))}
    return branches | {spec.name for spec in list_models()}


def _cells_of_model(
    suite: Suite,
    spec: ModelSpec,
    plan: list[tuple[AttackEntry, dict[str, list[str]]]],
    weights: dict[str, str],
) -> list[Cell]:
    """Return the cells of one model.

    Args:
        plan: the attacks, each with its sources by model.
        weights: the hashes by model.
    """
    dataset = spec.datasets[0]
    samples = min(suite.samples, len(load_dataset(dataset, suite.split)))
    step = suite.samples_per_cell
    return [
        Cell(
            model=spec.name,
            dataset=dataset,
            split=suite.split,
            attack=entry.attack,
            objective=entry.objective,
            estimator=entry.estimator,
            attack_params=entry.params,
            norm=entry.norm,
            eps=eps,
            seed=suite.seed,
            start=start,
            stop=min(start + step, samples),
            weights=weights[spec.name],
            source=source,
            source_weights=weights[source] if source else "",
        )
        for entry, sources in plan
        for source in sources.get(spec.name, [])
        for eps in entry.eps
        for start in range(0, samples, step)
    ]
