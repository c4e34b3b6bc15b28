"""Lossless coding of handwritten digits: a stream an image, all images as one sheet, and images without structure.

A stream of its own for 784 pixels is mostly headers for codecs that were made for photographs; on the sheet, which
holds the same digits side by side, headers weigh nothing.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from parsimony.assets.mnist import HELD_OUT, pixels
from parsimony.benchmarks.coding import coded, unequal
from parsimony.errors import UserError
from parsimony.interfaces import Item, Outcome, Workbench

ASSET = "mnist_5k"
ACROSS = 25
"""Digits a row of the sheet."""


class DigitsLossless:
    """Digits that no recipe trains on (the last ones of `mnist.pixels`), in batches.

    Codecs that refuse the sheet, or images of another size, are measured without.

    Parameters
    ----------
    dtype : str
        Of the samples.
    timed : bool
    items : int
        Batches.
    each : int
        Digits a batch, and images without structure.
    """

    def __init__(self, dtype: str, timed: bool, items: int, each: int):
        if items * each > HELD_OUT:
            raise UserError(f"digits_lossless: {items} batches of {each} are more than {HELD_OUT} digits held out")
        self.dtype, self.timed, self.count, self.each = dtype, timed, items, each

    def items(self, paths: dict[str, Path], seed: int) -> list[Item]:
        if ASSET not in paths:
            return []
        self.images = pixels(paths[ASSET])[0][-HELD_OUT:][: self.count * self.each]
        names = [*(f"digits_{n:03d}" for n in range(self.count)), "sheet", "noise"]
        return [Item(name, "digits", (), "uniform" if name == "noise" else ASSET) for name in names]

    def skipped(self, missing: dict[str, str]) -> dict[str, str]:
        return {"digits": missing[ASSET]} if ASSET in missing else {}

    def measure(self, item: Item, bench: Workbench) -> Outcome:
        outcome, xs = Outcome(), self.samples(item, bench)
        prefix = f"{item.id}_" if item.id in ("sheet", "noise") else ""
        for point in bench.points:
            try:
                decoded, numbers, cause = coded(bench, point, self.dtype, xs)
            except UserError:
                if prefix:
                    continue
                raise
            cause = cause or unequal(xs, decoded)
            numbers |= {"streams": len(xs), "exact_items": 0.0 if cause else float(len(xs))}
            outcome.numbers += [(point, f"{prefix}{metric}", float(value), "") for metric, value in numbers.items()]
            if cause:
                outcome.failures[point, f"{prefix}exact_items"] = cause
        return outcome

    def samples(self, item: Item, bench: Workbench) -> list[np.ndarray]:
        """Images [28, 28] of a batch, the sheet, or images of uniformly random values."""
        if item.id == "sheet":
            rows = len(self.images) // ACROSS
            grid = self.images[: rows * ACROSS].reshape(rows, ACROSS, 28, 28)
            return [np.ascontiguousarray(grid.swapaxes(1, 2)).reshape(28 * rows, 28 * ACROSS)]
        if item.id == "noise":
            return list(bench.rng(item.id).integers(0, 256, (self.each, 28, 28), np.uint8))
        n = int(item.id.removeprefix("digits_"))
        return list(self.images[n * self.each : (n + 1) * self.each])
