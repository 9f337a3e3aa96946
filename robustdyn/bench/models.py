"""Times dynamic models: dense against sparse execution, and clean against attacked batches."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from robustdyn import attacks
from robustdyn.attacks.draws import sample_seeds
from robustdyn.bench.breakdown import break_down
from robustdyn.bench.timing import ratios, spread, take_turns, threads
from robustdyn.data import load_dataset
from robustdyn.errors import UserError
from robustdyn.execution import execution
from robustdyn.labels import attack_label
from robustdyn.registry import ModelSpec, create_model, get_model_spec, list_models
from robustdyn.threat import Threat
from robustdyn.trace import trace
from robustdyn.weights import find_weights

THREAT = Threat("linf", 8 / 255)
PGD_STEPS = 50


@dataclass(frozen=True)
class ModelRow:
    """One model on one batch: what its decisions save in MACs and in time, clean and attacked.

    Attributes:
        model, family, dataset: its name, its leaf of the taxonomy, what it classifies.
        batch, threads, rounds: samples at once, threads, measurements of each.
        trained: whether its weights are.
        dense_macs, macs, attacked_macs: of one sample: in dense execution, which computes
            everything, and the means of the clean and the attacked batch.
        dense_seconds, sparse_seconds, attacked_seconds: of the batch; medians. The last is sparse.
        theoretical: dense_macs / macs.
        realised, realised_low, realised_high: dense / sparse seconds, median and quartiles over
            the rounds.
        attacked_theoretical, attacked_realised: the same two under attack.
        attack: which, with its objective, at L-inf 8/255.
        slowdown, slowdown_low, slowdown_high: sparse seconds, attacked / clean.
        macs_ratio: attacked / clean MACs.
        kernels: how often which kernel ran in which implementation, clean.
        executed_macs: of one sample, as sparse execution ran them, clean.
        products, dense_products: how many convolutions, matrix products and kernels ran.
        product_part, dense_product_part: the part of the time that is in these.
    """

    model: str
    family: str
    dataset: str
    batch: int
    threads: int
    rounds: int
    trained: bool
    dense_macs: float
    macs: float
    dense_seconds: float
    sparse_seconds: float
    theoretical: float
    realised: float
    realised_low: float
    realised_high: float
    attack: str
    attacked_macs: float
    attacked_seconds: float
    attacked_theoretical: float
    attacked_realised: float
    slowdown: float
    slowdown_low: float
    slowdown_high: float
    macs_ratio: float
    kernels: dict[str, int]
    executed_macs: float
    products: int
    product_part: float
    dense_products: int
    dense_product_part: float


def chosen_models(names: Sequence[str]) -> list[ModelSpec]:
    """Return the dynamic models whose name or family matches one of the patterns; none are all.

    Raises:
        UserError: if a pattern matches no dynamic model.
    """
    found: dict[str, ModelSpec] = {}
    for name in names or ("*",):
        specs = list_models(name, static=False)
        if not specs:
            static = list_models(name) or [get_model_spec(name)]
            raise UserError(
                f"'{static[0].name}' computes the same for every input: it has nothing to skip.",
                "Name dynamic models, see `robustdyn list models`.",
            )
        found |= {spec.name: spec for spec in specs}
    return list(found.values())


def trained_dataset(spec: ModelSpec) -> str | None:
    """Return the first dataset that the model has trained weights for, or None."""
    if not spec.shipped:
        return spec.datasets[0]
    return next((name for name in spec.datasets if find_weights(spec.name, name)), None)


def bench_model(
    spec: ModelSpec,
    *,
    batch: int = 64,
    attack: str = "pgd",
    thread_count: int | None = None,
    rounds: int = 15,
) -> ModelRow:
    """Return what a model saves on one batch of test samples; fresh weights where none are trained.

    Args:
        spec: of the model.
        batch: how many samples at once; sequences of one length, so possibly fewer.
        attack: the name of a registered attack; it maximises compute if it can, otherwise its own
            objective. PGD takes 50 steps, the others what they take by default.
        thread_count: threads of torch and of our kernels, by default torch's number.
        rounds: how often each execution is measured.

    Raises:
        UserError: if the attack is unknown or does not fit the model.
    """
    method = attacks.get(attack)
    objective = "compute" if "compute" in method.objectives else None
    steps: dict[str, Any] = {"steps": PGD_STEPS} if attack == "pgd" else {}
    dataset = trained_dataset(spec)
    model = create_model(spec.name, dataset, pretrained=dataset is not None)
    data = load_dataset(str(model.dataset), "test")
    positions = max(data.batches(batch), key=len)
    x, y = data.stack(positions), torch.from_numpy(data.labels[positions])
    with threads(thread_count):
        seeds = sample_seeds(0, data.sample_ids[positions])
        x_adv = method(model, x, y, threat=THREAT, objective=objective, seeds=seeds, **steps)
        label = attack_label(attack, objective or "", "", f"steps {PGD_STEPS}" if steps else "")
        return _measured(spec, model, (x, x_adv.to(x)), label, rounds, dataset is not None)


@torch.no_grad()
def _measured(
    spec: ModelSpec,
    model: nn.Module,
    inputs: tuple[Tensor, Tensor],
    attack: str,
    rounds: int,
    trained: bool,
) -> ModelRow:
    x, x_adv = inputs
    dense_macs, macs = _macs(model, x)
    _, attacked_macs = _macs(model, x_adv)
    sparse = _in_sparse(model, x)
    seconds = take_turns(
        {"dense": lambda: model(x), "sparse": sparse, "attacked": _in_sparse(model, x_adv)},
        rounds=rounds,
        steady=True,
    )
    dense, clean, slow = (spread(seconds[name]) for name in ("dense", "sparse", "attacked"))
    realised = spread(ratios(seconds["dense"], seconds["sparse"]))
    slowdown = spread(ratios(seconds["attacked"], seconds["sparse"]))
    with execution("sparse", report=True) as report:
        model(x)
    assert report is not None
    both = break_down({"sparse": sparse, "dense": lambda: model(x)}, rounds=rounds)
    parts, whole = both["sparse"], both["dense"]
    return ModelRow(
        model=spec.name,
        family=spec.family,
        dataset=str(model.dataset),
        batch=len(x),
        threads=torch.get_num_threads(),
        rounds=rounds,
        trained=trained,
        dense_macs=dense_macs,
        macs=macs,
        dense_seconds=dense.median,
        sparse_seconds=clean.median,
        theoretical=dense_macs / macs,
        realised=realised.median,
        realised_low=realised.low,
        realised_high=realised.high,
        attack=attack,
        attacked_macs=attacked_macs,
        attacked_seconds=slow.median,
        attacked_theoretical=dense_macs / attacked_macs,
        attacked_realised=spread(ratios(seconds["dense"], seconds["attacked"])).median,
        slowdown=slowdown.median,
        slowdown_low=slowdown.low,
        slowdown_high=slowdown.high,
        macs_ratio=attacked_macs / macs,
        kernels={f"{name} {by}": times for name, by, times in report.rows()},
        executed_macs=parts.macs / len(x),
        products=parts.products,
        product_part=parts.part,
        dense_products=whole.products,
        dense_product_part=whole.part,
    )


def _macs(model: nn.Module, x: Tensor) -> tuple[float, float]:
    """The MACs of a sample in dense execution, and the mean of what the decisions ask for."""
    with trace() as passed:
        model(x)
    return sum(macs for macs, _ in passed.terms()), passed.macs().mean().item()


def _in_sparse(model: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    def run() -> Tensor:
        with execution("sparse"):
            return model(x)

    return run
