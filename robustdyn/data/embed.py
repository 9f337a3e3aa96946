"""Make the embedded data files again from their sources (see embedded/README.md).

python -m robustdyn.data.embed --fashion-mnist DIR --japanese-vowels DIR

The same sources give the same bytes, so that a change of the data shows as a change of the file.
"""

import argparse
import hashlib
import io
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from robustdyn.data.files import EMBEDDED, FASHION_MNIST_FILES, find_fashion_mnist
from robustdyn.data.idx import parse_idx, unpack
from robustdyn.data.timeseries import read_ts
from robustdyn.errors import UserError

# SHA-256 of the unpacked IDX files: packagers compress them anew, so the .gz files differ.
FASHION_MNIST_SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
FASHION_MNIST_CALIBRATION_PER_CLASS = 500

# JapaneseVowels spans -1.853 to 2.203. One affine map for all features, [LOW, HIGH] to [0, 1],
# leaves some room on both sides: no clean value lies on a bound.
JAPANESE_VOWELS_LOW = -2.0
JAPANESE_VOWELS_HIGH = 2.4
JAPANESE_VOWELS_CALIBRATION_EVERY = 5


def embed_fashion_mnist(source: Path, output: Path) -> list[Path]:
    """Write the test and calibration files from the IDX files in `source`; return their paths.

    Raises UserError where a file is missing or is not the original (by SHA-256).
    """
    arrays = {}
    for split, files in FASHION_MNIST_FILES.items():
        for name, path in zip(files, find_fashion_mnist(split, [source]), strict=True):
            data = unpack(path)
            if hashlib.sha256(data).hexdigest() != FASHION_MNIST_SHA256[name]:
                raise UserError(
                    f"'{path}' does not hold the original Fashion-MNIST bytes.",
                    "Use the files of the Debian package dataset-fashion-mnist.",
                )
            arrays[name] = parse_idx(data, ndim=3 if "images" in name else 1, name=str(path))
    written = []
    for split, (images, labels) in FASHION_MNIST_FILES.items():
        ids = np.arange(len(arrays[labels]))
        if split == "train":
            split = "calibration"
            ids = draw_balanced(arrays[labels], FASHION_MNIST_CALIBRATION_PER_CLASS)
        path = output / f"fashion_mnist_{split}.npz"
        pixels = arrays[images][ids, None]  # (N, 1, 28, 28)
        write_npz(path, values=pixels, labels=arrays[labels][ids].astype(np.int64), sample_ids=ids)
        written.append(path)
    return written


def embed_japanese_vowels(source: Path, output: Path) -> list[Path]:
    """Write train, calibration and test from the `.ts` files in `source`; return their paths."""
    original = read_ts(source / "JapaneseVowels_TRAIN.ts")
    test = read_ts(source / "JapaneseVowels_TEST.ts")
    calibration = every_nth_of_class(original.labels, JAPANESE_VOWELS_CALIBRATION_EVERY)
    written = []
    for split, content, ids in (
        ("train", original, np.flatnonzero(~calibration)),
        ("calibration", original, np.flatnonzero(calibration)),
        ("test", test, np.arange(len(test.labels))),
    ):
        path = output / f"japanese_vowels_{split}.npz"
        series = [scale_japanese_vowels(content.series[i]) for i in ids]  # (T, 12) each
        write_npz(
            path,
            values=np.concatenate(series).astype(np.float32),  # (sum of T, 12), end to end
            lengths=np.array([len(frames) for frames in series], dtype=np.int64),
            labels=content.labels[ids],
            sample_ids=ids,
        )
        written.append(path)
    return written


def scale_japanese_vowels(raw: np.ndarray) -> np.ndarray:
    """Return `raw` cepstra (any shape) in [0, 1]: (raw - LOW) / (HIGH - LOW), the same for all."""
    if raw.min() < JAPANESE_VOWELS_LOW or raw.max() > JAPANESE_VOWELS_HIGH:
        raise UserError(
            f"Values from {raw.min():g} to {raw.max():g} are outside "
            f"{JAPANESE_VOWELS_LOW:g} to {JAPANESE_VOWELS_HIGH:g}.",
            "Use the original JapaneseVowels files, not a rescaled version.",
        )
    return (raw - JAPANESE_VOWELS_LOW) / (JAPANESE_VOWELS_HIGH - JAPANESE_VOWELS_LOW)


def draw_balanced(labels: np.ndarray, per_class: int) -> np.ndarray:
    """Return sorted positions of `per_class` random samples of each class (fixed seed)."""
    random = np.random.RandomState(0)  # its stream is frozen; default_rng's may change
    drawn = [random.permutation(np.flatnonzero(labels == k))[:per_class] for k in np.unique(labels)]
    return np.sort(np.concatenate(drawn))


def every_nth_of_class(labels: np.ndarray, n: int) -> np.ndarray:
    """Return a mask (N,): True at each class's n-th, 2n-th, 3n-th ... sample in file order."""
    mask = np.zeros(len(labels), dtype=bool)
    for k in np.unique(labels):
        mask[np.flatnonzero(labels == k)[n - 1 :: n]] = True
    return mask


def write_npz(path: Path, **arrays: np.ndarray) -> None:
    """Write `arrays` as a compressed npz file whose bytes depend on nothing but the arrays."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            buffer = io.BytesIO()
            np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
            member = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            member.create_system = 3  # the same on every operating system
            member.external_attr = 0o644 << 16
            archive.writestr(member, buffer.getvalue(), zipfile.ZIP_DEFLATED, compresslevel=9)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m robustdyn.data.embed", description=__doc__)
    parser.add_argument("--fashion-mnist", type=Path, metavar="DIR", required=True)
    parser.add_argument("--japanese-vowels", type=Path, metavar="DIR", required=True)
    options = parser.parse_args(arguments)
    for path in (
        *embed_fashion_mnist(options.fashion_mnist, EMBEDDED),
        *embed_japanese_vowels(options.japanese_vowels, EMBEDDED),
    ):
        print(f"{path.stat().st_size:>9,} bytes  {path}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
