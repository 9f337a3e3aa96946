"""From the name of a dataset and of a split to a Dataset."""

import os

import numpy as np

from robustdyn.data.dataset import Dataset
from robustdyn.data.files import EMBEDDED, fashion_mnist_folders, find_fashion_mnist
from robustdyn.data.idx import read_idx
from robustdyn.data.info import get_info
from robustdyn.errors import UserError, suggest


def load_dataset(
    name: str, split: str = "test", root: str | os.PathLike[str] | None = None
) -> Dataset:
    """Return the split `split` of the dataset `name`.

    All splits are embedded in the package but one: Fashion-MNIST's train split is read from IDX
    files in `root`, in $ROBUSTDYN_DATA or in Debian's package. It leaves out the calibration
    images, so 55,000 remain. Raises UserError for unknown names and missing or wrong files.
    """
    info = get_info(name)
    if split not in info.splits:
        raise UserError(
            f"Dataset '{name}' has no split '{split}'.",
            f"{suggest(split, info.splits)}Splits: {', '.join(info.splits)}.",
        )
    if (name, split) == ("fashion_mnist", "train"):
        return _fashion_mnist_train(root)
    with np.load(EMBEDDED / f"{name}_{split}.npz", allow_pickle=False) as arrays:
        return Dataset(info, split, **arrays)


def _fashion_mnist_train(root: str | os.PathLike[str] | None) -> Dataset:
    images_path, labels_path = find_fashion_mnist("train", fashion_mnist_folders(root))
    images = read_idx(images_path, ndim=3)  # (60000, 28, 28)
    labels = read_idx(labels_path, ndim=1).astype(np.int64)
    with np.load(EMBEDDED / "fashion_mnist_calibration.npz", allow_pickle=False) as arrays:
        calibration = dict(arrays)
    held_out = calibration["sample_ids"]
    # Other datasets use the same file names: the calibration images tell Fashion-MNIST apart.
    if not (
        images.shape == (60000, 28, 28)
        and labels.shape == (60000,)
        and np.array_equal(images[held_out, None], calibration["values"])
        and np.array_equal(labels[held_out], calibration["labels"])
    ):
        raise UserError(
            f"'{images_path}' and '{labels_path.name}' are not Fashion-MNIST's train files.",
            "Install the Debian package dataset-fashion-mnist, or set ROBUSTDYN_DATA to the "
            "folder that holds them.",
        )
    ids = np.delete(np.arange(len(labels)), held_out)
    return Dataset(
        get_info("fashion_mnist"),
        "train",
        values=images[ids, None],
        labels=labels[ids],
        sample_ids=ids,
    )
