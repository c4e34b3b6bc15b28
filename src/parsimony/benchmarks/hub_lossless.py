"""Lossless coding of the grey images of a public data set, as `digits_lossless` codes those of a package."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np

from parsimony.benchmarks.digits_lossless import DigitsLossless
from parsimony.benchmarks.hub_media import picture, rows
from parsimony.interfaces import Item


class HubLossless(DigitsLossless):
    """The first images [28, 28] of a test set, in batches, as one sheet, and noise.

    Parameters
    ----------
    dtype : str
        Of the samples.
    timed : bool
    data : str
        The asset, whose ``test.parquet`` has a column of images.
    items : int
        Batches.
    each : int
        Images a batch, and images without structure.
    """

    def __init__(self, dtype: str, timed: bool, data: str, items: int, each: int):
        self.dtype, self.timed, self.data, self.count, self.each = dtype, timed, data, items, each

    def items(self, paths: dict[str, Path], seed: int) -> list[Item]:
        if self.data not in paths:
            return []
        found = islice(rows(paths[self.data] / "test.parquet", ["image"]), self.count * self.each)
        self.images = np.stack([picture(row["image"], "L") for row in found])
        names = [*(f"digits_{n:03d}" for n in range(self.count)), "sheet", "noise"]
        return [Item(name, self.data, (), "uniform" if name == "noise" else self.data) for name in names]

    def skipped(self, missing: dict[str, str]) -> dict[str, str]:
        return {self.data: missing[self.data]} if self.data in missing else {}
