"""Where the data files are: embedded in the package, or Fashion-MNIST's IDX files elsewhere."""

import os
from collections.abc import Iterable
from pathlib import Path

from robustdyn.errors import UserError

EMBEDDED = Path(__file__).parent / "embedded"
DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
FASHION_MNIST_FILES = {  # images, labels
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_SUBFOLDERS = ("", "fashion_mnist", "fashion-mnist", "FashionMNIST/raw")


def fashion_mnist_folders(root: str | os.PathLike[str] | None = None) -> list[Path]:
    """Return the folders to look in: `root`, then $ROBUSTDYN_DATA, then Debian's package."""
    given = [Path(folder) for folder in (root, os.environ.get("ROBUSTDYN_DATA")) if folder]
    return [*given, DEBIAN_FASHION_MNIST]


def find_fashion_mnist(split: str, folders: Iterable[Path]) -> tuple[Path, Path]:
    """Return the images file and the labels file of `split` ("train" or "test").

    They come from the first of `folders`, or of their usual sub-folders, that has both, plain or
    `.gz`. Raises UserError when none has.
    """
    images, labels = FASHION_MNIST_FILES[split]
    folders = list(folders)
    for folder in (base / sub for base in folders for sub in _SUBFOLDERS):
        found = [_plain_or_gzip(folder / name) for name in (images, labels)]
        if found[0] and found[1]:
            return found[0], found[1]
    raise UserError(
        f"No Fashion-MNIST {split} files ({images}, {labels}; plain or .gz) in "
        + ", ".join(f"'{folder}'" for folder in folders)
        + ".",
        "Install the Debian package dataset-fashion-mnist, or set ROBUSTDYN_DATA to the folder "
        "that holds them.",
    )


def _plain_or_gzip(path: Path) -> Path | None:
    candidates = (path, path.with_name(f"{path.name}.gz"))
    return next((candidate for candidate in candidates if candidate.is_file()), None)
