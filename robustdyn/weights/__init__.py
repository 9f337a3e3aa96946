"""Trained weights: one safetensors file and one model card (JSON) per model and dataset.

Shipped weights lie in this folder; `robustdyn train` writes to the user's folder,
$ROBUSTDYN_HOME/weights (by default ~/.local/share/robustdyn/weights), unless told otherwise.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from robustdyn.errors import UserError
from robustdyn.folders import home, partial_path, put, write_json

_SHIPPED = Path(__file__).resolve().parent


def user_folder() -> Path:
    """Return the folder in which the user's own weights are kept."""
    return home() / "weights"


def find_weights(name: str, dataset: str) -> Path | None:
    """Return the weights file of a model: the shipped one, else the user's, else None."""
    for folder in (_SHIPPED, user_folder()):
        path = folder / f"{name}.{dataset}.safetensors"
        if path.is_file():
            return path
    return None


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def state_sha256(state: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256 of tensors with their names, such as a model's state_dict(), in hex."""
    digest = hashlib.sha256()
    for name, value in state.items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def checked_sha256(path: Path) -> str:
    """Return the SHA-256 of a weights file, in hex.

    Raises:
        UserError: if the card beside it states another.
    """
    card, found = path.with_suffix(".json"), sha256(path)
    if card.is_file() and json.loads(card.read_text())["sha256"] != found:
        raise UserError(
            f"The weights {path} do not have the hash that their card states.",
            "Install robustdyn again, or train the model again: the file was altered.",
        )
    return found


def load_weights(model: nn.Module, path: Path) -> None:
    """Load `path` into the model, checked against the hash in the card beside it.

    Raises:
        UserError: if the file is missing, altered or of another architecture.
    """
    if not path.is_file():
        raise UserError(f"There is no weights file {path}.", "Check the path.")
    checked_sha256(path)
    try:
        state = {key: value.float() for key, value in load_file(path).items()}
        model.load_state_dict(state | _untrained(model))
    except (RuntimeError, SafetensorError) as error:
        raise UserError(
            f"The weights {path} do not fit the model: {str(error).splitlines()[0]}",
            "Use weights of the same model and dataset.",
        ) from error


def _untrained(model: nn.Module) -> dict[str, torch.Tensor]:
    """The counters of batch norms, which only matter to training and are not saved."""
    return {k: v for k, v in model.state_dict().items() if k.endswith("num_batches_tracked")}


def stored_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the model's weights as they are stored: rounded where that keeps them useful.

    Matrices and kernels are float16; vectors (norms, biases, thresholds) are float32.
    """
    return {
        key: (value.half() if value.dim() > 1 else value.float()).contiguous()
        for key, value in model.state_dict().items()
        if key not in _untrained(model)
    }


def round_weights(model: nn.Module) -> None:
    """Round the model's weights to what is stored, so that it is the model that users get."""
    model.load_state_dict(stored_weights(model) | _untrained(model))


def save_weights(model: nn.Module, path: Path, card: dict[str, Any]) -> None:
    """Write weights and model card, each atomically; the card gets the weights' SHA-256.

    Killed in between, this leaves weights without a card, never with a card of other weights.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path)
    partial.write_bytes(save(stored_weights(model)))
    path.with_suffix(".json").unlink(missing_ok=True)
    put(partial, path)
    save_card(path, card)


def save_card(path: Path, card: dict[str, Any]) -> None:
    """Write the card of the weights `path`, atomically, with their SHA-256."""
    write_json(card | {"sha256": sha256(path)}, path.with_suffix(".json"))
