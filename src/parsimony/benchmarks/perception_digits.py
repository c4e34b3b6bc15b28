"""Handwritten digits to small classifiers: one was trained on digits as they are, one on digits that were JPEG files.

A codec's headers would outweigh a single digit, so 25 digits make a sheet, which is coded as one image.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from parsimony.assets.mnist import HELD_OUT, digits
from parsimony.benchmarks.perception import NETWORK, Eyes, Perception, image_likeness
from parsimony.interfaces import Item
from parsimony.models.digit_judge import Judge

ACROSS, CELL, EDGE = 5, 32, 2
"""Digits a row of a sheet, pixels a digit with its black edge, and pixels of that edge."""
JUDGES = {"clean": "digits_judge", "jpeg": "digits_judge_jpeg"}


class PerceptionDigits(Perception):
    """Sheets of digits that no classifier was trained on, as colour images, which every codec takes."""

    needed = (NETWORK, "mnist_5k", *JUDGES.values())
    category = "digits"

    def load(self, paths: dict[str, Path], seed: int) -> list[Item]:
        self.eyes, self.classes, items = Eyes(paths[NETWORK]), {}, []
        self.judges = {name: Judge.load(paths[asset]) for name, asset in JUDGES.items()}
        images, classes = (values[-HELD_OUT:] for values in digits(paths["mnist_5k"]))
        for n, (some, kinds) in enumerate(zip(images.split(ACROSS**2), classes.split(ACROSS**2), strict=True)):
            key = f"sheet_{n:03d}"
            self.samples[key], self.classes[key] = np.stack([sheet(some)] * 3, -1), kinds
            items.append(Item(key, "digits", (), "mnist_5k"))
        return items

    def perceive(self, item: Item, image: np.ndarray):
        """Features of both networks of the sheet, and how many digits each classifier gets right."""
        grey = np.asarray(image, np.float64).mean(-1).round().astype(np.uint8)
        cut = cells(grey)
        right = {
            name: int((judge(cut).argmax(-1) == self.classes[item.id]).sum()) for name, judge in self.judges.items()
        }
        return *self.eyes.features(image), right

    def likeness(self, x: np.ndarray, y: np.ndarray, clean, seen) -> dict[str, float]:
        return image_likeness(x, y, clean[:2], seen[:2])

    def score(self, item: Item, clean, seen) -> dict[str, float]:
        before, now = clean[2], seen[2]
        return {
            "right": now["clean"],
            "right_gained": now["clean"] - before["clean"],
            "right_jpeg_trained": now["jpeg"],
            "right_gained_jpeg_trained": now["jpeg"] - before["jpeg"],
            "labelled": len(self.classes[item.id]),
        }


def sheet(images: torch.Tensor) -> np.ndarray:
    """A sheet [160, 160] uint8 of 25 digits [25, 28, 28] with values 0 to 1."""
    framed = np.pad((images.numpy() * 255).round().astype(np.uint8), ((0, 0), (EDGE, EDGE), (EDGE, EDGE)))
    return framed.reshape(ACROSS, ACROSS, CELL, CELL).swapaxes(1, 2).reshape(ACROSS * CELL, ACROSS * CELL)


def cells(image: np.ndarray) -> torch.Tensor:
    """The digits [25, 28, 28] of a sheet [160, 160] uint8, with values 0 to 1."""
    framed = image.reshape(ACROSS, CELL, ACROSS, CELL).swapaxes(1, 2).reshape(-1, CELL, CELL)
    return torch.from_numpy(framed[:, EDGE:-EDGE, EDGE:-EDGE].astype(np.float32)) / 255
