"""The registry of dynamic models: register, list, create."""

import hashlib
import inspect
import json
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from robustdyn import plugins
from robustdyn.data.info import DatasetInfo, get_info, list_datasets
from robustdyn.errors import UserError, suggest
from robustdyn.plugins import LOADED, Plugin
from robustdyn.recipe import Recipe
from robustdyn.weights import checked_sha256, find_weights, load_weights, state_sha256

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
        build: the function.
        plugin: the source of the plug-in that registered it, "" for others.
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
    plugin: str = ""

    @property
    def shipped(self) -> bool:
        """True for the models of this package."""
        return self.build.__module__.startswith("robustdyn.models.")


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
                f"A model named '{name}' is registered already, by "
                f"{known.plugin or known.build.__module__}.",
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


def load_plugin(source: str, known: tuple[str, ...] = ()) -> Plugin:
    """Load a plug-in once, and return it with its models or its error; other models stay usable.

    Args:
        source: see `plugins.source_of`.
        known: the models it had when it was registered, to name them if it cannot be loaded.
    """
    if source in LOADED:
        return LOADED[source]
    plugin = LOADED[source] = Plugin(source, known)
    before = dict(_MODELS)
    try:
        plugins.run(plugin)
    except (Exception, SystemExit) as error:
        told = error.message if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        plugin.error = " ".join(told.split())
        _MODELS.clear()
        _MODELS.update(before)
        return plugin
    plugin.models = tuple(name for name in _MODELS if name not in before)
    for name in plugin.models:
        spec = _MODELS[name]
        _MODELS[name] = replace(spec, plugin=source, build=_importing(plugin, spec.build))
    return plugin


def _importing(plugin: Plugin, build: Builder) -> Builder:
    """The builder, with the imports inside it seeing the plug-in's folder."""

    @wraps(build)
    def build_there(*args: Any, **kwargs: Any) -> nn.Module:
        with plugins.importing(plugin):
            return build(*args, **kwargs)

    return build_there


def list_plugins() -> list[Plugin]:
    """Return the plug-ins of installed packages and of the user, loaded or with their error."""
    for point in plugins.installed():
        load_plugin(point.module)
    for entry in plugins.registrations():
        load_plugin(entry.source, entry.models)
    return list(LOADED.values())


def _load_all() -> None:
    package = import_module("robustdyn.models")
    for module in pkgutil.walk_packages(package.__path__, "robustdyn.models."):
        import_module(module.name)
    list_plugins()


def list_models(pattern: str = "*", *, static: bool | None = None) -> list[ModelSpec]:
    """Return the models whose name or family matches `pattern`, sorted by family and name.

    Args:
        pattern: a shell pattern such as "spatial.*" or "skip*".
        static: True for static models only, False for dynamic ones only.
    """
    _load_all()
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
    _load_all()
    if name not in _MODELS:
        refuse_broken(name)
        raise UserError(
            f"Unknown model '{name}'.",
            f"{suggest(name, _MODELS)}See `robustdyn list models`.",
        )
    return _MODELS[name]


def refuse_broken(name: str) -> None:
    """Say so if `name` is a model of a plug-in that could not be loaded.

    Raises:
        UserError: in that case.
    """
    broken = next((p for p in LOADED.values() if p.error and name in p.models), None)
    if broken is not None:
        raise UserError(
            f"The plug-in of model '{name}', {broken.source}, cannot be loaded: {broken.error}",
            f"Mend it, or run `robustdyn register --remove {broken.source}`.",
        )


def create_model(
    name: str, dataset: str | None = None, pretrained: bool | str | Path = True
) -> nn.Module:
    """Return the model in eval mode, with attributes `spec` and `dataset`.

    The convolutions of our own models are laid out channels-last, which is faster on CPUs. Fresh
    weights are the same in every call.

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
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_model(spec, info)
    if isinstance(pretrained, str | Path):
        load_weights(model, Path(pretrained))
    elif pretrained:
        path = find_weights(name, info.name)
        if path is not None:
            load_weights(model, path)
        elif spec.shipped:
            raise UserError(
                f"There are no trained weights of '{name}' for '{info.name}'.",
                f"Run `robustdyn train {name} --dataset {info.name}`, or pass pretrained=False.",
            )
    if spec.shipped and spec.task == "image":
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


def fitted_on(model: nn.Module) -> str:
    """Return the split on which a model's thresholds were fitted, "" if that is not known.

    A trained model's recipe says it; any other model may, in an attribute `fitted_on`.
    """
    spec: ModelSpec | None = getattr(model, "spec", None)
    calibrated = spec is not None and spec.recipe is not None and spec.recipe.calibrate is not None
    return getattr(model, "fitted_on", "calibration" if calibrated else "")


def model_sha256(spec: ModelSpec, dataset: str) -> str:
    """Return what identifies a model's weights and, of a plug-in, its code, in hex.

    Raises:
        UserError: if the weights file was altered, or one of our models has none.
    """
    path = find_weights(spec.name, dataset)
    if path is not None:
        weights = checked_sha256(path)
    elif spec.shipped:
        raise UserError(
            f"There are no trained weights of '{spec.name}' for '{dataset}'.",
            f"Run `robustdyn train {spec.name}` first, or leave the model out of the suite.",
        )
    else:
        weights = state_sha256(create_model(spec.name, dataset).state_dict())
    if not spec.plugin:
        return weights
    code = plugins.source_sha256(LOADED[spec.plugin])
    return hashlib.sha256(f"{weights} {code}".encode()).hexdigest()
