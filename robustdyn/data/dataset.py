"""A split of a dataset in memory: inputs in [0, 1], labels and stable sample ids."""

import copy
import operator
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from robustdyn.data.info import DatasetInfo
from robustdyn.errors import UserError

Positions: TypeAlias = Sequence[int] | np.ndarray | Tensor  # of samples; or a mask (N,) of bool


class Dataset(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """A sequence of (input float32 in [0, 1], label).

    Images are (C, H, W); sequences are (T, F) with T their own, never padded. Storage stays
    compact (bytes, or all frames end to end) and is converted on access; a subset shares it.
    """

    info: DatasetInfo
    split: str
    labels: np.ndarray  # int64 (N,)
    sample_ids: np.ndarray  # int64 (N,): the position in the original file

    def __init__(
        self,
        info: DatasetInfo,
        split: str,
        *,
        values: np.ndarray,
        labels: np.ndarray,
        sample_ids: np.ndarray,
        lengths: np.ndarray | None = None,
    ):
        """Hold `values`: images uint8 (N, C, H, W), or frames float32 (sum of `lengths`, F)."""
        self.info = info
        self.split = split
        self.labels = labels
        self.sample_ids = sample_ids
        self._values = values
        self._lengths = np.ones(len(labels), dtype=np.int64) if lengths is None else lengths
        self._starts = np.cumsum(self._lengths) - self._lengths  # rows of `values`

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        position = operator.index(position)
        return self.stack([position])[0], int(self.labels[position])

    def subset(self, positions: Positions) -> "Dataset":
        """Return a Dataset of the samples at `positions` (or where a mask is True), in order."""
        index = _as_index(positions)
        chosen = copy.copy(self)
        chosen.labels, chosen.sample_ids = self.labels[index], self.sample_ids[index]
        chosen._starts, chosen._lengths = self._starts[index], self._lengths[index]
        return chosen

    def stack(self, positions: Positions) -> Tensor:
        """Return the inputs at `positions` as one float32 tensor, (B, C, H, W) or (B, T, F).

        Raises UserError when there are none or their lengths differ.
        """
        index = _as_index(positions)
        lengths = np.unique(self._lengths[index])
        if len(lengths) != 1:
            raise UserError(
                f"Cannot stack samples of {len(lengths)} different lengths.",
                "Take the positions from Dataset.batches().",
            )
        starts = self._starts[index]
        if self.info.task == "image":
            return torch.from_numpy(self._values[starts] / np.float32(255))  # (B, C, H, W)
        rows = starts[:, None] + np.arange(lengths[0])  # (B, T)
        return torch.from_numpy(self._values[rows])  # (B, T, F)

    def batches(self, batch_size: int) -> list[np.ndarray]:
        """Return positions in batches of at most `batch_size` samples of one shape.

        Every position comes once; shorter sequences first, equal lengths by position.
        """
        if batch_size < 1:
            raise UserError(f"Batch size {batch_size} is too small.", "Give 1 or more.")
        order = np.argsort(self._lengths, kind="stable")
        changes = np.flatnonzero(np.diff(self._lengths[order])) + 1
        return [
            group[start : start + batch_size]
            for group in np.split(order, changes)
            for start in range(0, len(group), batch_size)
        ]


def _as_index(positions: Positions) -> np.ndarray:
    index = np.asarray(positions)
    return index if index.size else index.astype(np.int64)  # an empty list becomes floats
