"""Handwritten digits by class: does a classifier of real digits see the class, and how far are they from real ones?"""

from __future__ import annotations

from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from parsimony.interfaces import Item, Outcome, Workbench
from parsimony.models.digit_judge import CLASSES, Judge
from parsimony.models.masked_image import SIDE

ASSET = "digits_judge"


class Digits:
    """Batches of generated digits, equally many of each class.

    ``frechet_distance`` is that of Gaussians fitted to the judge's features of the batch and of all real digits held
    out; it falls with the size of the batch, so only batches of one size compare.

    Parameters
    ----------
    dtype : str
    timed : bool
    items : int
        Batches.
    each : int
        Images a class in a batch.
    """

    def __init__(self, dtype: str, timed: bool, items: int, each: int):
        self.dtype, self.timed, self.count, self.each = dtype, timed, items, each

    def items(self, paths: dict[str, Path], seed: int) -> list[Item]:
        if ASSET not in paths:
            return []
        moments = load_file(paths[ASSET] / "judge.safetensors")
        self.mean, self.covariance = moments["mean"].double().numpy(), moments["covariance"].double().numpy()
        self.judge = Judge.load(paths[ASSET])
        return [Item(f"batch_{n:03d}", "digits", (), "generated") for n in range(self.count)]

    def skipped(self, missing: dict[str, str]) -> dict[str, str]:
        return {"digits": missing[ASSET]} if ASSET in missing else {}

    def measure(self, item: Item, bench: Workbench) -> Outcome:
        outcome, classes = Outcome(), torch.arange(CLASSES).repeat_interleave(self.each)
        bench.model(self.dtype)
        turns = {point: bench.system(point, self.dtype) for point in bench.points}
        if (reference := bench.reference(self.dtype)) is not None:
            turns["reference"] = reference
        names, runs = list(turns), {}
        shift = int(bench.rng(item.id).integers(len(names)))
        for name in names[shift:] + names[:shift]:
            began = perf_counter()
            runs[name] = *turns[name].generate_images(classes, bench.rng(item.id)), perf_counter() - began
        for point in bench.points:
            images, cost, seconds = runs[point]
            numbers = self.graded(images, classes)
            numbers |= {"images": len(images), "tokens": len(images) * SIDE**2, "seconds": seconds}
            numbers |= {"forward_passes": cost.passes, "rows": cost.rows, "steps": len(cost.accepted_per_pass)}
            if "reference" in runs:
                theirs, other, took = runs["reference"]
                numbers |= {"reference_seconds": took, "reference_tokens": len(theirs) * SIDE**2}
                numbers |= {"reference_rows": other.rows, "reference_passes": other.passes}
            outcome.numbers += [(point, metric, float(value), "") for metric, value in numbers.items()]
        return outcome

    @torch.no_grad()
    def graded(self, images: Tensor, classes: Tensor) -> dict[str, float]:
        """Share of images in which the judge sees their class, and the Fréchet distance of its features."""
        features = self.judge.features(images)
        seen = self.judge.head(features).argmax(-1)
        mine = features.double().numpy()
        return {
            "right_class": float((seen == classes).sum()),
            "frechet": frechet(mine.mean(0), np.cov(mine.T), self.mean, self.covariance),
        }


def frechet(mean: np.ndarray, covariance: np.ndarray, other_mean: np.ndarray, other_covariance: np.ndarray) -> float:
    """Squared 2-Wasserstein distance of two Gaussians: |m - n|^2 + tr(S + R - 2 (S R)^(1/2))."""
    roots = np.sqrt(np.linalg.eigvals(covariance @ other_covariance).real.clip(0)).sum()
    return float(((mean - other_mean) ** 2).sum() + np.trace(covariance) + np.trace(other_covariance) - 2 * roots)
