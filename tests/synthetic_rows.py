"""Rows as an evaluation writes them, made up: every kind of model, attack and gate."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
from pandas import DataFrame, concat

IMAGE_ATTACKS = (
    ("noise", ""),
    ("pgd", "cross_entropy"),
    ("torchattacks:PGD", ""),
    ("pgd", "compute"),
    ("autoslow", ""),
)
MANY_ATTACKS = (
    *IMAGE_ATTACKS,
    ("apgd", "dlr"),
    ("foolbox:LinfPGD", ""),
    ("square", "cross_entropy"),
    ("square", "compute"),
    ("pgd", "log_reach"),
)
STRENGTH = {"noise": 0.05, "square": 0.5, "autoslow": 1.2}


@dataclass(frozen=True)
class Kind:
    """A made-up model: its gates, and what share of its compute they guard."""

    family: str
    gate_kind: str
    gates: int
    max_macs: float
    dataset: str = "fashion_mnist"
    maps: bool = False


KINDS = {
    "resnet38": Kind("static.resnet", "", 0, 41.2e6),
    "sdn_resnet": Kind("instance.depth.early_exit", "exit", 4, 38.6e6),
    "skipnet38": Kind("instance.depth.skipping", "skip", 18, 42.9e6),
    "dynconv": Kind("spatial.pixel", "position", 6, 35.0e6, maps=True),
    "skip_rnn": Kind("temporal.skipping", "step", 29, 58.0e3, dataset="japanese_vowels"),
}


def is_compute(attack: str, objective: str) -> bool:
    return objective in ("compute", "log_reach") or attack == "autoslow"


def cell_rows(
    model: str,
    kind: Kind,
    attack: str = "pgd",
    objective: str = "compute",
    *,
    eps: float = 8 / 255,
    norm: str = "linf",
    n: int = 60,
    seed: int = 0,
) -> DataFrame:
    """Return the rows of one cell; clean results depend on the model and the sample alone."""
    definition = f"{model}|{kind.dataset}|{attack}|{objective}|{norm}|{eps:.6f}|{seed}"
    cell = sha256(definition.encode()).hexdigest()[:16]
    clean = np.random.default_rng(int(sha256(model.encode()).hexdigest()[:8], 16))
    hostile = np.random.default_rng(int(cell[:8], 16))
    static = kind.gate_kind == ""
    push = 1 - np.exp(-eps * 255 / 6 * STRENGTH.get(attack, 0.9))
    lengths = clean.integers(7, kind.gates + 1, n) if kind.gate_kind == "step" else None

    label = clean.integers(0, 10, n)
    clean_pred = np.where(clean.random(n) < 0.9, label, (label + 1) % 10)
    fooled = hostile.random(n) < push * (0.15 if is_compute(attack, objective) else 0.95)
    adv_pred = np.where(fooled, (label + 3) % 10, clean_pred)

    clean_gates, adv_gates, clean_macs, adv_macs, exits, adv_exits, maxima = ([] for _ in range(7))
    for i in range(n):
        gates = int(lengths[i]) if lengths is not None else kind.gates
        full = kind.max_macs * (gates / kind.gates if kind.gates else 1)
        rate = clean.beta(2, 3)
        before = _gates(clean, kind.gate_kind, gates, rate)
        up = push if is_compute(attack, objective) else 0.15 * push * hostile.choice([-1, 1])
        target = np.clip(rate + up * (1 - rate), 0, 1)
        after = _gates(hostile, kind.gate_kind, gates, target) if attack != "clean" else before
        if is_compute(attack, objective):  # a compute attack keeps its best iterate
            after = np.maximum(before, after)
        clean_gates.append(before)
        adv_gates.append(after)
        maxima.append(full)
        clean_macs.append(full if static else full * (0.25 + 0.75 * before.mean()))
        adv_macs.append(full if static else full * (0.25 + 0.75 * after.mean()))
        is_exit = kind.gate_kind == "exit"
        exits.append(int(before.sum()) if is_exit else -1)
        adv_exits.append(int(after.sum()) if is_exit else -1)

    prefix = {"exit": "exit", "skip": "block", "position": "layer", "step": "update"}
    rows = DataFrame(
        {
            "cell": cell,
            "model": model,
            "family": kind.family,
            "static": static,
            "dataset": kind.dataset,
            "split": "test",
            "attack": attack,
            "objective": objective,
            "estimator": "",
            "norm": norm,
            "eps": 0.0 if attack == "clean" else eps,
            "seed": seed,
            "sample_id": np.arange(n, dtype=np.int64),
            "label": label,
            "clean_pred": clean_pred,
            "adv_pred": clean_pred if attack == "clean" else adv_pred,
            "clean_macs": np.array(clean_macs),
            "adv_macs": np.array(adv_macs),
            "max_macs": np.array(maxima),
            "linf": 0.0 if attack == "clean" else eps,
            "l2": 0.0 if attack == "clean" else eps * 20,
            "valid": True,
            "clean_exit": exits,
            "adv_exit": adv_exits,
        }
    )
    rows["params"] = "{}"
    rows["fitted_on"] = "calibration" if kind.gate_kind == "exit" else ""
    for when in ("clean", "adv", "max"):
        rows[f"{when}_bit_operations"] = 1024 * rows[f"{when}_macs"]
    rows["clean_expected_macs"] = rows["clean_macs"] * 0.9
    rows["adv_expected_macs"] = rows["adv_macs"] * 0.9
    rows["gate_gradient"] = None if static else True
    rows["loss_gradient"] = True
    rows["repeatable"] = True
    rows["still_rising"] = None if attack in ("clean", "noise") or ":" in attack else False
    rows["uses_gradient"] = attack not in ("clean", "noise", "square")
    rows["gate_names"] = [
        [f"{prefix.get(kind.gate_kind, '')}{k}" for k in range(len(g))] for g in clean_gates
    ]
    rows["gate_kinds"] = [[kind.gate_kind] * len(g) for g in clean_gates]
    rows["clean_gates"] = [g.tolist() for g in clean_gates]
    rows["adv_gates"] = [g.tolist() for g in adv_gates]
    pictures = [_pictures(i, push) if kind.maps and i < 8 else (None,) * 4 for i in range(n)]
    for name, column in zip(
        ("image", "adv_image", "clean_map", "adv_map"), zip(*pictures, strict=True), strict=True
    ):
        rows[name] = DataFrame({name: list(column)}, dtype=object)[name]
    shapes = [i < 8 and kind.maps for i in range(n)]
    rows["image_shape"] = [[1, 28, 28] if s else None for s in shapes]
    rows["map_shape"] = [[28, 28] if s else None for s in shapes]
    return rows


def run_rows(
    models: dict[str, Kind] | None = None,
    attacks: Sequence[tuple[str, str]] = IMAGE_ATTACKS,
    *,
    eps: Sequence[float] = (2 / 255, 8 / 255),
    n: int = 60,
    seeds: Sequence[int] = (0,),
) -> DataFrame:
    """Return the rows of a run: a clean cell and models x attacks x eps x seeds."""
    cells = []
    for model, kind in (models or KINDS).items():
        cells.append(cell_rows(model, kind, "clean", "", n=n))
        for attack, objective in attacks:
            cells += [
                cell_rows(model, kind, attack, objective, eps=e, n=n, seed=seed)
                for e in eps
                for seed in seeds
            ]
    return concat(cells, ignore_index=True)


def transfer_rows(*, n: int = 60) -> DataFrame:
    """Return the rows of two attacks, each crafted on three models and judged on all of them."""
    models = [name for name, kind in KINDS.items() if kind.dataset == "fashion_mnist"][:3]
    cells = []
    for source in models:
        for target in models:
            for objective in ("compute", "cross_entropy"):
                cell = cell_rows(target, KINDS[target], "pgd", objective, n=n)
                cells.append(cell.assign(attack=f"pgd from {source}", source=source))
    return concat(cells, ignore_index=True)


def many_models(count: int = 30) -> dict[str, Kind]:
    """Return `count` models: the known kinds, over and over, under new names."""
    kinds = list(KINDS.items())
    chosen = [kinds[k % len(kinds)] for k in range(count)]
    return {f"{name}_{chr(97 + k // len(kinds))}": kind for k, (name, kind) in enumerate(chosen)}


def _gates(random: np.random.Generator, kind: str, gates: int, rate: float) -> np.ndarray:
    """Return the mean keep of every gate: an exit model stops at the first closed gate."""
    if kind == "position":
        return np.clip(random.normal(rate, 0.1, gates), 0, 1)
    keep = (random.random(gates) < rate).astype(float)
    return np.minimum.accumulate(keep) if kind == "exit" else keep


def _pictures(i: int, push: float) -> tuple[list[float], ...]:
    """Return image, attacked image, map and attacked map of 28 x 28, flat."""
    y, x = np.mgrid[0:28, 0:28] / 27 - 0.5
    shape = np.exp(-(((x - 0.05 * i) ** 2 + (1 + i % 3) * y**2) * 18))
    noise = np.random.default_rng(i).uniform(-8 / 255, 8 / 255, shape.shape)
    grown = np.clip(shape * 1.3 + push * 0.6, 0, 1)
    parts = (shape, np.clip(shape + noise, 0, 1), np.clip(shape * 1.3, 0, 1), grown)
    return tuple(part.astype(np.float32).ravel().tolist() for part in parts)
