"""Handwritten digits: the one split of what is trained on and measured on."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

SIDE = 28
HELD_OUT = 1000
"""Digits on which floors are checked and methods measured; the file is shuffled first, its order is by class."""


def pixels(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images [5000, 28, 28] uint8 and their classes int64, shuffled; the last `HELD_OUT` are not trained on."""
    with gzip.open(folder / "mnist_5k.csv.gz", "rt") as file:
        numbers = file.read().replace("\n", ",")  # `loadtxt` takes a second
    rows = np.fromstring(numbers, np.int64, sep=",").reshape(-1, SIDE**2 + 1)
    rows = rows[np.random.default_rng(0).permutation(len(rows))]
    return rows[:, :-1].astype(np.uint8).reshape(-1, SIDE, SIDE), rows[:, -1].copy()


def digits(folder: Path) -> tuple[Tensor, Tensor]:
    """The same as tensors, with values 0 to 1."""
    import torch  # which takes a second, and codecs' cells do without

    images, classes = pixels(folder)
    return torch.from_numpy(images).float() / 255, torch.from_numpy(classes)
