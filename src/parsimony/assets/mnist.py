"""Handwritten digits: the one split of what is trained on and measured on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

HELD_OUT = 1000
"""Digits on which floors are checked and methods measured; the file is shuffled first, its order is by class."""


def digits(folder: Path) -> tuple[Tensor, Tensor]:
    """Images [5000, 28, 28] with values 0 to 1 and their classes, shuffled; the last `HELD_OUT` are not trained on."""
    table = np.loadtxt(folder / "mnist_5k.csv.gz", delimiter=",").astype(np.int64)
    table = table[np.random.default_rng(0).permutation(len(table))]
    return torch.from_numpy(table[:, :-1]).float().view(-1, 28, 28) / 255, torch.from_numpy(table[:, -1])
