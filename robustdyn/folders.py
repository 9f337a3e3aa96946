"""Folders that results go to."""

import os
from pathlib import Path

from robustdyn.errors import UserError


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
