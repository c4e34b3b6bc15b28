"""Machine perceptual quality (Jacobellis et al., 2024, arXiv 2401.07957): what networks make of what a codec leaves.

An unchanged network looks at every item as it is and as it was decoded.  Its score stands beside the rate, PSNR, SSIM
and the distance of deep features, so that codecs can be compared at equal rate, and scores with measures of likeness.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from pytorch_msssim import ssim
from torch import Tensor

from parsimony.benchmarks.coding import coded, unequal
from parsimony.benchmarks.photographs import psnr
from parsimony.interfaces import Item, Outcome, Workbench
from parsimony.models.efficientnet_lite import SIDE, EfficientNetLite, feature_distance

NETWORK = "efficientnet_lite0"


class Perception:
    """What the benchmarks share: code, decode elsewhere, look, compare.

    A benchmark gives `needed`, `load` and `perceive`, `score` and `likeness`.

    Parameters
    ----------
    dtype : str
        Of the samples.
    timed : bool
        False: nothing here depends on time.
    items : int
        At most.
    """

    needed: tuple[str, ...] = ()
    """Assets without which there is nothing to measure."""
    category = ""

    def __init__(self, dtype: str, timed: bool, items: int):
        self.dtype, self.timed, self.count = dtype, timed, items

    def items(self, paths: dict[str, Path], seed: int) -> list[Item]:
        self.samples: dict[str, np.ndarray] = {}
        return self.load(paths, seed)[: self.count] if set(self.needed) <= set(paths) else []

    def skipped(self, missing: dict[str, str]) -> dict[str, str]:
        reasons = [reason for asset, reason in missing.items() if asset in self.needed]
        return {self.category: reasons[0]} if reasons else {}

    def measure(self, item: Item, bench: Workbench) -> Outcome:
        outcome, x = Outcome(), self.samples[item.id]
        clean = self.perceive(item, x)
        for point in bench.points:
            decoded, numbers, cause = coded(bench, point, self.dtype, [x])
            if not cause and decoded[0].shape != x.shape:
                cause = f"decoded shape {list(decoded[0].shape)} instead of {list(x.shape)}"
            if not cause and bench.lossless:
                cause = unequal([x], decoded)
            numbers = rate(numbers["bits"], x)
            if not cause:
                seen = self.perceive(item, decoded[0])
                numbers |= self.likeness(x, decoded[0], clean, seen) | self.score(item, clean, seen)
            outcome.numbers += [(point, metric, float(value), "") for metric, value in numbers.items()]
            if cause:
                outcome.failures[point, "bits"] = cause
        return outcome


def rate(bits: float, x: np.ndarray) -> dict[str, float]:
    """Bits of an item's stream and the places that they are shared among: pixels (of all channels), or samples."""
    return {"bits": bits, "pixels": x.shape[0] * x.shape[1]} if x.ndim > 1 else {"bits": bits, "clip_samples": len(x)}


class Eyes:
    """EfficientNet-Lite0 and, as a control, the same network with random weights; both only look.

    Parameters
    ----------
    folder : Path
        Of the asset `NETWORK`.
    """

    def __init__(self, folder: Path):
        self.trained, self.random = EfficientNetLite.load(folder), EfficientNetLite.random()

    def features(self, image: np.ndarray) -> tuple[list[Tensor], list[Tensor]]:
        """Features of an image [H, W, 3] uint8, as it is, of both networks."""
        x = tensor(image)
        return self.trained.features(x), self.random.features(x)


def tensor(image: np.ndarray) -> Tensor:
    """[1, 3, H, W] with values 0 to 255 of an image [H, W, 3] uint8."""
    return torch.tensor(image).permute(2, 0, 1)[None].float()


def as_seen(image: np.ndarray) -> np.ndarray:
    """An image [H, W, 3] uint8 at the size that the classifier was trained on."""
    small = F.interpolate(tensor(image), (SIDE, SIDE), mode="bicubic", antialias=True)
    return small[0].permute(1, 2, 0).clamp(0, 255).round().byte().numpy()


def image_likeness(x: np.ndarray, y: np.ndarray, features, others) -> dict[str, float]:
    """PSNR, SSIM (Wang et al., 2004) and distances of deep and of random features of two images [H, W, 3] uint8."""
    deep, control = (float(feature_distance(a, b)) for a, b in zip(features, others, strict=True))
    structure = ssim(tensor(x).double(), tensor(y).double(), data_range=255)
    return {"psnr": psnr(x, y), "ssim": float(structure), "feature_distance": deep, "control_distance": control}
