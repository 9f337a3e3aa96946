"""Folders and files that users own: where they are, and writing them whole or not at all."""

import json
import os
from pathlib import Path
from typing import Any

from robustdyn.errors import UserError


def home() -> Path:
    """Return the user's folder: $ROBUSTDYN_HOME, by default ~/.local/share/robustdyn."""
    stated = os.environ.get("ROBUSTDYN_HOME")
    return Path(stated) if stated else Path.home() / ".local/share/robustdyn"


def partial_path(path: Path) -> Path:
    """Return the name, in the same folder, under which this process writes `path`."""
    return path.with_name(f"{path.name}.{os.getpid()}.partial")


def put(partial: Path, path: Path) -> None:
    """Let what was written as `partial` be `path`, whole even if the machine stops."""
    with open(partial, "rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)


def write_json(value: Any, path: Path) -> None:
    """Write `value` as JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_path(path)
    partial.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    put(partial, path)


def make_writable(folder: Path, what: str) -> None:
    """Make the folder if it is missing, and see that files can be written there.

    Raises:
        UserError: if not; `what` names what was to be written, such as "Results".
    """
    probe = folder / f"probe.{os.getpid()}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"{what} cannot be written to '{folder}': {error.strerror}.",
            "Choose another folder with --out.",
        ) from error
