"""One training loop for every model: recipe and seed in, weights and model card out."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustdyn.cards import attacked_figures, clean_figures, whole_batches
from robustdyn.data import Dataset, get_info, load_dataset
from robustdyn.errors import UserError
from robustdyn.gates import estimator
from robustdyn.recipe import Recipe
from robustdyn.registry import build_model, get_model_spec
from robustdyn.trace import trace
from robustdyn.weights import round_weights, save_card, save_weights

Log = Callable[[str], None]


def train(
    name: str,
    *,
    dataset: str | None = None,
    out: Path,
    seed: int | None = None,
    data_root: str | Path | None = None,
    epochs: int | None = None,
    log: Log = print,
) -> dict[str, Any]:
    """Train a registered model by its recipe; write weights and card to `out`; return the card.

    Args:
        name: a registered model.
        dataset: one of the model's datasets, by default the first.
        out: folder for NAME.DATASET.safetensors and its card.
        seed: instead of the recipe's.
        data_root: folder of the full training data; see `load_dataset`.
        epochs: instead of the recipe's.
        log: called with one line per epoch.

    Raises:
        UserError: if the model has no recipe, or the training data is not found.
    """
    spec = get_model_spec(name)
    if spec.recipe is None:
        raise UserError(
            f"Model '{name}' has no training recipe.",
            "Pass recipe=Recipe(...) to register_model.",
        )
    info = get_info(dataset or spec.datasets[0])
    recipe = spec.recipe
    seed = recipe.seed if seed is None else seed
    epochs = recipe.epochs if epochs is None else epochs
    data = load_dataset(info.name, "train", root=data_root)
    started = time.monotonic()

    torch.manual_seed(seed)
    model = build_model(spec, info)
    with _threads(1 if info.task == "sequence" else None):  # small operations do not share work
        _fit(model, data, recipe, epochs=epochs, seed=seed, log=log)
    model.eval()
    model.spec, model.dataset = spec, info.name  # type: ignore[assignment]
    round_weights(model)  # before thresholds are fitted and figures taken
    if recipe.calibrate is not None:
        inputs, labels = whole_batches(load_dataset(info.name, "calibration"))
        with torch.no_grad():
            recipe.calibrate(model, inputs, labels)
    card = {
        "command": f"robustdyn train {name} --dataset {info.name} --seed {seed}"
        + (f" --epochs {epochs}" if epochs != recipe.epochs else ""),
        "recipe": {key: repr(value) for key, value in vars(recipe).items()} | {"epochs": epochs},
        "seed": seed,
        "train_seconds": round(time.monotonic() - started),
    } | clean_figures(model, spec, info.name)
    path = out / f"{name}.{info.name}.safetensors"
    save_weights(model, path, card)  # now: the attacks take longer than the training
    card |= attacked_figures(model, info.name, log=log)
    save_card(path, card)
    return card


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _fit(
    model: nn.Module, data: Dataset, recipe: Recipe, *, epochs: int, seed: int, log: Log
) -> None:
    rng = np.random.default_rng(seed)
    optimizer = _optimizer(model, recipe)
    steps = epochs * len(data.batches(recipe.batch_size))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.lr, total_steps=steps, pct_start=0.2, cycle_momentum=False
    )
    if data.info.task == "image":
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    half = recipe.precision == "bfloat16"
    done = 0
    for epoch in range(epochs):
        model.train()
        begun, losses, right, seen = time.monotonic(), 0.0, 0, 0
        for x, y in _batches(data, recipe, rng):
            full = recipe.full_share > 0 and rng.random() < recipe.full_share
            gates = "full" if full else recipe.estimator
            with (
                estimator(gates),
                torch.autocast("cpu", torch.bfloat16, enabled=half),
                trace() as passed,
            ):
                logits = model(x)
            loss = recipe.loss(logits.float(), y, passed, done / steps)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            schedule.step()
            done += 1
            losses += loss.item() * len(y)
            right += int((logits.argmax(1) == y).sum())
            seen += len(y)
        if not math.isfinite(losses):
            raise UserError("Training diverged: the loss is not finite.", "Lower the recipe's lr.")
        used = float(passed.expected_macs().detach().mean()) / passed.max_macs()
        log(
            f"epoch {epoch + 1}/{epochs}: loss {losses / seen:.3f}, accuracy {right / seen:.3f}, "
            f"compute {used:.2f} of full, {time.monotonic() - begun:.1f} s"
        )


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    groups: list[dict[str, Any]] = [
        {"params": [p for p in model.parameters() if p.dim() > 1]},
        {"params": [p for p in model.parameters() if p.dim() <= 1], "weight_decay": 0.0},
    ]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, recipe.lr, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(
        groups, recipe.lr, momentum=0.9, nesterov=True, weight_decay=recipe.weight_decay
    )


def _batches(
    data: Dataset, recipe: Recipe, rng: np.random.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield shuffled, augmented batches; samples of one batch have one shape."""
    order = data.subset(rng.permutation(len(data)))
    groups = order.batches(recipe.batch_size)
    for k in rng.permutation(len(groups)):
        x = order.stack(groups[k])
        y = torch.from_numpy(order.labels[groups[k]])
        yield _augmented(x, recipe.augment, data.info.std, rng), y


def _augmented(x: Tensor, how: str, std: tuple[float, ...], rng: np.random.Generator) -> Tensor:
    if how == "flip_shift":  # each image mirrored or not, all shifted by up to 2 pixels
        flip = torch.from_numpy(rng.random(len(x)) < 0.5)
        x = torch.where(flip[:, None, None, None], x.flip(3), x)
        height, width = x.shape[2:]
        row, column = rng.integers(0, 5, 2)
        x = F.pad(x, (2, 2, 2, 2))[:, :, row : row + height, column : column + width]
        return x.contiguous(memory_format=torch.channels_last)
    if how == "jitter":  # noise on every value, and one offset per feature of a sequence
        noise = rng.normal(0.0, 0.3, tuple(x.shape)) + rng.normal(0.0, 0.2, (len(x), 1, x.shape[2]))
        return x + (torch.from_numpy(noise) * torch.tensor(std)).float()
    return x
