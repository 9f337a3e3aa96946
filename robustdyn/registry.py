"""The registry of dynamic models: register, list, create."""

import inspect
import json
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustdyn.data.info import DatasetInfo, get_info, list_datasets
from robustdyn.errors import UserError, suggest
from robustdyn.recipe import Recipe
from robustdyn.weights import find_weights, load_weights

Builder = Callable[..., nn.Module]
TASK_DATASETS = {"image": "fashion_mnist", "sequence": "japanese_vowels"}


@dataclass(frozen=True)
class ModelSpec:
    """What is known of a registered model.

    Attributes:
        name: the name of the function that builds it.
        family: its leaf of the survey's taxonomy, dots between levels.
        paper: authors, title, year, arXiv number.
        task: "image" or "sequence".
        static_compute: True if its compute never depends on the input (a negative control).
        batch_coupled: True if a sample's result depends on the others in its batch.
        randomised: True if two passes over one input may differ in eval mode.
        datasets: those it can be built for; its own first.
        recipe: how `robustdyn train` trains it.
        summary: the first line of the builder's docstring.
    """

    name: str
    family: str
    paper: str
    task: str
    static_compute: bool
    batch_coupled: bool
    randomised: bool
    datasets: tuple[str, ...]
    recipe: Recipe | None
    summary: str
    build: Builder


_MODELS: dict[str, ModelSpec] = {}


def register_model(
    *,
    family: str,
    paper: str = "",
    task: str = "image",
    static_compute: bool = False,
    batch_coupled: bool = False,
    randomised: bool = False,
    datasets: tuple[str, ...] | None = None,
    recipe: Recipe | None = None,
) -> Callable[[Builder], Builder]:
    """Register the decorated function under its own name.

    The function returns an `nn.Module` whose forward() maps inputs in [0, 1] to logits (B, K). It
    is called with those of the following that it has parameters for: num_classes, in_channels,
    input_shape, mean, std, dataset (its name).

    Raises:
        UserError: if the name is taken by another function, or the task is unknown.
    """
    if task not in TASK_DATASETS:
        raise UserError(
            f"Unknown task '{task}'.",
            f"{suggest(task, TASK_DATASETS)}Choose one of: {', '.join(TASK_DATASETS)}.",
        )

    def register(build: Builder) -> Builder:
        name = build.__name__
        known = _MODELS.get(name)
        if known is not None and _origin(known.build) != _origin(build):
            raise UserError(
                f"A model named '{name}' is registered already, by {known.build.__module__}.",
                "Rename the function: its name is the model's name.",
            )
        _MODELS[name] = ModelSpec(
            name=name,
            family=family,
            paper=paper,
            task=task,
            static_compute=static_compute,
            batch_coupled=batch_coupled,
            randomised=randomised,
            datasets=datasets or _datasets_for(task),
            recipe=recipe,
            summary=(inspect.getdoc(build) or "").split("\n")[0],
            build=build,
        )
        return build

    return register


def _datasets_for(task: str) -> tuple[str, ...]:
    names = [info.name for info in list_datasets() if info.task == task]
    return tuple(sorted(names, key=lambda name: name != TASK_DATASETS[task]))


def _origin(build: Builder) -> tuple[str, str]:
    return build.__module__, build.__qualname__


def _load_zoo() -> None:
    package = import_module("robustdyn.models")
    for module in pkgutil.walk_packages(package.__path__, "robustdyn.models."):
        import_module(module.name)


def list_models(pattern: str = "*", *, static: bool | None = None) -> list[ModelSpec]:
    """Return the models whose name or family matches `pattern`, sorted by family and name.

    Args:
        pattern: a shell pattern such as "spatial.*" or "skip*".
        static: True for static models only, False for dynamic ones only.
    """
    _load_zoo()
    found = [
        spec
        for spec in _MODELS.values()
        if (fnmatchcase(spec.name, pattern) or fnmatchcase(spec.family, pattern))
        and static in (None, spec.static_compute)
    ]
    return sorted(found, key=lambda spec: (spec.family, spec.name))


def get_model_spec(name: str) -> ModelSpec:
    """Return the spec of one model.

    Raises:
        UserError: if there is none of that name.
    """
    _load_zoo()
    if name not in _MODELS:
        raise UserError(
            f"Unknown model '{name}'.",
            f"{suggest(name, _MODELS)}See `robustdyn list models`.",
        )
    return _MODELS[name]


def create_model(
    name: str, dataset: str | None = None, pretrained: bool | str | Path = True
) -> nn.Module:
    """Return the model in eval mode, with attributes `spec` and `dataset`.

    Convolutions are laid out channels-last, which is faster on CPUs.

    Args:
        name: see `list_models`.
        dataset: what it classifies; by default the first of the spec's datasets.
        pretrained: True for the trained weights, False for fresh ones, or a .safetensors file.

    Raises:
        UserError: if the model, the dataset or the weights are unknown or do not fit.
    """
    spec = get_model_spec(name)
    info = get_info(dataset or spec.datasets[0])
    if info.name not in spec.datasets:
        raise UserError(
            f"Model '{name}' is not made for dataset '{info.name}'.",
            f"Choose one of: {', '.join(spec.datasets)}.",
        )
    model = build_model(spec, info)
    if isinstance(pretrained, str | Path):
        load_weights(model, Path(pretrained))
    elif pretrained:
        path = find_weights(name, info.name)
        if path is not None:
            load_weights(model, path)
        elif spec.build.__module__.startswith("robustdyn.models."):
            raise UserError(
                f"There are no trained weights of '{name}' for '{info.name}'.",
                f"Run `robustdyn train {name} --dataset {info.name}`, or pass pretrained=False.",
            )
    if spec.task == "image":
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.spec = spec  # type: ignore[assignment]
    model.dataset = info.name  # type: ignore[assignment]
    return model.eval()


def build_model(spec: ModelSpec, info: DatasetInfo) -> nn.Module:
    """Return a fresh model of `spec`, shaped for the dataset."""
    shape = info.input_shape
    offers: dict[str, Any] = {
        "num_classes": info.num_classes,
        "in_channels": shape[0] if info.task == "image" else shape[-1],
        "input_shape": shape,
        "mean": info.mean,
        "std": info.std,
        "dataset": info.name,
    }
    parameters = inspect.signature(spec.build).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    wanted = {key: value for key, value in offers.items() if takes_all or key in parameters}
    model = spec.build(**wanted)
    if not isinstance(model, nn.Module):
        raise UserError(
            f"The function '{spec.name}' returned {type(model).__name__}, not an nn.Module.",
            "Return the module itself from the registered function.",
        )
    return model


def model_card(name: str, dataset: str) -> dict[str, Any] | None:
    """Return the model card of the trained weights, or None if there are no weights."""
    path = find_weights(name, dataset)
    return json.loads(path.with_suffix(".json").read_text()) if path is not None else None
