"""Lossless coding of whole photographs, kept apart by whether they were JPEGs before, which biases every comparison."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from parsimony.benchmarks.coding import coded, unequal
from parsimony.interfaces import Item, Outcome, Workbench

PICTURES = {
    "no_trace": {
        "skimage_samples": ("astronaut.png", "camera.png", "chelsea.png", "coffee.png", "motorcycle_left.png"),
        "libjxl_photographs": ("bliznaca.png", "keong_macan.png", "riaphotographs.png"),
    },
    "was_jpeg": {
        "skimage_samples": ("hubble_deep_field.jpg", "ihc.png", "retina.jpg", "rocket.jpg"),
        "sklearn_samples": ("china.jpg", "flower.jpg"),
        "libjxl_photographs": ("flower.png",),
    },
}
"""Pictures by asset: those in which no grid of 8 by 8 blocks shows, and those stored as JPEG or with such a grid."""


class PhotographsLossless:
    """Every value of a photograph must come back.

    Parameters
    ----------
    dtype : str
        Of the samples.
    timed : bool
    side : int
        Larger ones are cut to so many rows and columns from their middle.
    """

    def __init__(self, dtype: str, timed: bool, side: int):
        self.dtype, self.timed, self.side = dtype, timed, side

    def items(self, paths: dict[str, Path], seed: int) -> list[Item]:
        self.paths = paths
        return [
            Item(f"{asset}/{file}".replace(".", "_").replace("/", "_"), category, (), f"{asset}/{file}")
            for category, assets in PICTURES.items()
            for asset, files in assets.items()
            if asset in paths
            for file in files
        ]

    def skipped(self, missing: dict[str, str]) -> dict[str, str]:
        names = {"libjxl_photographs": "debian", "skimage_samples": "skimage", "sklearn_samples": "sklearn"}
        return {names[asset]: reason for asset, reason in missing.items() if asset in names}

    def measure(self, item: Item, bench: Workbench) -> Outcome:
        outcome, x = Outcome(), self.picture(item)
        for point in bench.points:
            decoded, numbers, cause = coded(bench, point, self.dtype, [x])
            cause = cause or unequal([x], decoded)
            numbers |= {"pixels": x.shape[0] * x.shape[1], "streams": 1, "exact_items": 0 if cause else 1}
            outcome.numbers += [(point, metric, float(value), "") for metric, value in numbers.items()]
            if cause:
                outcome.failures[point, "exact_items"] = cause
        return outcome

    def picture(self, item: Item) -> np.ndarray:
        """The picture of an item, [H, W] or [H, W, 3] uint8, cut to at most `side`."""
        asset, file = item.source.split("/")
        with Image.open(self.paths[asset] / file) as image:
            x = np.asarray(image if image.mode == "L" else image.convert("RGB"))
        y, z = (max(0, length - self.side) // 2 for length in x.shape[:2])
        return np.ascontiguousarray(x[y : y + self.side, z : z + self.side])
