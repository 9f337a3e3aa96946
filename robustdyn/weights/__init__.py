"""Trained weights: one safetensors file and one model card (JSON) per model and dataset.

Shipped weights lie in this folder; `robustdyn train` writes to the user's folder,
$ROBUSTDYN_HOME/weights (by default ~/.local/share/robustdyn/weights), unless told otherwise.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from robustdyn.errors import UserError

_SHIPPED = Path(__file__).resolve().parent


def user_folder() -> Path:
    """Return the folder in which the user's own weights are kept."""
    home = os.environ.get("ROBUSTDYN_HOME")
    return (Path(home) if home else Path.home() / ".local/share/robustdyn") / "weights"


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


def load_weights(model: nn.Module, path: Path) -> None:
    """Load `path` into the model, checked against the hash in the card beside it.

    Raises:
        UserError: if the file is missing, altered or of another architecture.
    """
    if not path.is_file():
        raise UserError(f"There is no weights file {path}.", "Check the path.")
    card = path.with_suffix(".json")
    if card.is_file() and json.loads(card.read_text())["sha256"] != sha256(path):
        raise UserError(
            f"The weights {path} do not have the hash that their card states.",
            "Install robustdyn again, or train the model again: the file was altered.",
        )
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


def save_weights(model: nn.Module, path: Path) -> str:
    """Write the model's weights, half precision where that keeps them useful; return the SHA-256.

    Matrices and kernels are stored as float16; vectors (norms, biases, thresholds) as float32.
    """
    state = {
        key: (value.half() if value.dim() > 1 else value.float()).contiguous()
        for key, value in model.state_dict().items()
        if key not in _untrained(model)
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file(state, partial)
    os.replace(partial, path)
    return sha256(path)


def save_card(path: Path, card: dict[str, Any]) -> None:
    """Write the model card beside the weights file `path`, atomically."""
    partial = path.with_suffix(".json.partial")
    partial.write_text(json.dumps(card, indent=2) + "\n")
    os.replace(partial, path.with_suffix(".json"))
