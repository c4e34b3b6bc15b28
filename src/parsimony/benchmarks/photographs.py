"""Lossy coding of photographs: real bytes against what another process decodes from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from parsimony.assets.photographs import SIDE, crops
from parsimony.benchmarks.coding import coded
from parsimony.interfaces import Item, Outcome, Workbench

SMALLEST = 161
"""Pixels a side that MS-SSIM takes."""
ASSETS = ("photographs", "photographs_debian")


class Photographs:
    """Squares on the test side of `assets.photographs`, or a piece of each; categories are the pictures they are of.

    Parameters
    ----------
    dtype : str
        Of the samples.
    timed : bool
    items : int
        Squares at most; taken in turn from the pictures.
    side : int
        Height and width of what is coded of them, 256 pixels or less; the place is random.
    """

    def __init__(self, dtype: str, timed: bool, items: int, side: int):
        self.dtype, self.timed, self.count, self.side = dtype, timed, items, side

    def items(self, paths: dict[str, Path], seed: int) -> list[Item]:
        self.squares, found, rng = {}, [], np.random.default_rng([seed, self.side])
        for asset in ASSETS:
            if asset in paths:
                for name, square in zip(*crops(paths[asset], "test"), strict=True):
                    picture, row, column = name.rsplit("_", 2)
                    y, x = rng.integers(0, SIDE - self.side + 1, 2)
                    self.squares[name] = square[y : y + self.side, x : x + self.side].copy()
                    found.append((row, column, len(found), Item(name, picture, (), asset)))
        return [item for *_, item in sorted(found, key=lambda each: each[:3])][: self.count]

    def skipped(self, missing: dict[str, str]) -> dict[str, str]:
        return {asset: reason for asset, reason in missing.items() if asset in ASSETS}

    def measure(self, item: Item, bench: Workbench) -> Outcome:
        outcome, x = Outcome(), self.squares[item.id]
        for point in bench.points:
            decoded, numbers, cause = coded(bench, point, self.dtype, [x])
            if not cause and decoded[0].shape != x.shape:
                cause = f"decoded shape {list(decoded[0].shape)} instead of {list(x.shape)}"
            if not cause:
                numbers["psnr"] = psnr(x, decoded[0])
                if self.side >= SMALLEST:
                    numbers["ms_ssim_db"] = ms_ssim_db(x, decoded[0])
            numbers |= {"pixels": x.shape[0] * x.shape[1], "streams": 1, "decoded_items": 0 if cause else 1}
            outcome.numbers += [(point, metric, float(value), "") for metric, value in numbers.items()]
            if cause:
                outcome.failures[point, "decoded_items"] = cause
        return outcome


def psnr(x: np.ndarray, y: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB over all values of uint8 images; equal ones get that of one value off by one."""
    error = ((x.astype(np.float64) - y) ** 2).sum()
    return float(10 * np.log10(255**2 * x.size / max(error, 1.0)))


def ms_ssim_db(x: np.ndarray, y: np.ndarray) -> float:
    """-10 log10(1 - MS-SSIM) of RGB images [H, W, 3] uint8 (Wang et al. 2003: five scales), at most 100 dB."""
    import torch  # which takes a second: a cell's first item begins before
    from pytorch_msssim import ms_ssim

    first, second = (torch.from_numpy(each.copy()).double().permute(2, 0, 1)[None] for each in (x, y))
    likeness = ms_ssim(first, second, data_range=255, size_average=False)
    return float(-10 * np.log10(max(1 - likeness.item(), 1e-10)))
