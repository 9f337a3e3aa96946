"""What each dataset is. Imports no torch, so that the command line can list datasets at once."""

from dataclasses import dataclass
from typing import Literal

from robustdyn.errors import UserError, suggest


@dataclass(frozen=True)
class DatasetInfo:
    """One dataset: its task, its shapes, its statistics and where it comes from."""

    name: str
    title: str
    task: Literal["image", "sequence"]
    input_shape: tuple[int | None, ...]  # (C, H, W), or (T, F) with T None: it varies
    num_classes: int
    classes: tuple[str, ...]
    mean: tuple[float, ...]  # per channel or feature, of train inputs in [0, 1]
    std: tuple[float, ...]
    splits: tuple[str, ...]
    licence: str
    source: str


_FASHION_MNIST = DatasetInfo(
    name="fashion_mnist",
    title="Fashion-MNIST",
    task="image",
    input_shape=(1, 28, 28),
    num_classes=10,
    classes=(
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
    mean=(0.2860,),
    std=(0.3530,),
    splits=("train", "calibration", "test"),
    licence="MIT, copyright 2017 Zalando SE",
    source="Xiao et al. 2017, arXiv:1708.07747; Debian package dataset-fashion-mnist",
)

# 12 LPC cepstrum coefficients a frame, scaled by one affine map: x = (raw + 2) / 4.4.
_JAPANESE_VOWELS = DatasetInfo(
    name="japanese_vowels",
    title="JapaneseVowels",
    task="sequence",
    input_shape=(None, 12),
    num_classes=9,
    classes=tuple(f"speaker {number}" for number in range(1, 10)),
    mean=(
        *(0.6536, 0.3293, 0.5084, 0.3936, 0.5037, 0.4060),
        *(0.4153, 0.4435, 0.4080, 0.4133, 0.4494, 0.4743),
    ),
    std=(
        *(0.1114, 0.0881, 0.0676, 0.0694, 0.0607, 0.0381),
        *(0.0363, 0.0431, 0.0430, 0.0265, 0.0225, 0.0287),
    ),
    splits=("train", "calibration", "test"),
    licence="BSD-3-Clause, as distributed in aeon",
    source=(
        "Kudo, Toyama and Shimbo 1999, Pattern Recognition Letters 20(11-13); "
        "UCI archive, doi:10.24432/C5NS47; aeon 1.6.0"
    ),
)

_DATASETS = {info.name: info for info in (_FASHION_MNIST, _JAPANESE_VOWELS)}


def list_datasets() -> list[DatasetInfo]:
    """Return every dataset, by name."""
    return [_DATASETS[name] for name in sorted(_DATASETS)]


def get_info(name: str) -> DatasetInfo:
    """Return the dataset called `name`; raises UserError, with a suggestion, if there is none."""
    if name not in _DATASETS:
        raise UserError(
            f"Unknown dataset '{name}'.",
            f"{suggest(name, _DATASETS)}Known: {', '.join(sorted(_DATASETS))}.",
        )
    return _DATASETS[name]
