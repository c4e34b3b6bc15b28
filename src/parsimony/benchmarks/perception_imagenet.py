"""ImageNet's validation images, as they come, to ViT-B/16 and ResNet-18 (arXiv 2401.07957, table of accuracies).

The codec sees an image at its own resolution and colours; each classifier makes its own input of what is decoded.
Deep features are EfficientNet-Lite0's, which decides nothing here.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np

from parsimony.benchmarks.hub_media import picture, rows
from parsimony.benchmarks.perception import NETWORK, Eyes, Perception, as_seen, image_likeness
from parsimony.interfaces import Item
from parsimony.models.image_classifier import ImageClassifier

CLASSIFIERS = {"": "vit_base_16", "_small": "resnet_18"}
"""Suffix of metrics -> asset."""
IMAGES = "imagenet_validation"


class PerceptionImageNet(Perception):
    """The first rows of the validation set."""

    needed = (NETWORK, *CLASSIFIERS.values(), IMAGES)
    category = "imagenet"

    def load(self, paths: dict[str, Path], seed: int) -> list[Item]:
        self.eyes, self.labels, found = Eyes(paths[NETWORK]), {}, []
        self.classifiers = {suffix: ImageClassifier(paths[asset]) for suffix, asset in CLASSIFIERS.items()}
        table = rows(paths[IMAGES] / "validation.parquet", ["image", "label"])
        for n, row in enumerate(islice(table, self.count)):
            key = f"row_{n:05d}"
            self.samples[key], self.labels[key] = picture(row["image"]), row["label"]
            found.append(Item(key, "imagenet", (), f"{IMAGES} row {n}"))
        return found

    def perceive(self, item: Item, image: np.ndarray):
        """Features of both networks of `Eyes`, and log probabilities [1000] of each classifier."""
        said = {suffix: classifier.classify(image) for suffix, classifier in self.classifiers.items()}
        return *self.eyes.features(as_seen(image)), said

    def likeness(self, x: np.ndarray, y: np.ndarray, clean, seen) -> dict[str, float]:
        return image_likeness(x, y, clean[:2], seen[:2])

    def score(self, item: Item, clean, seen) -> dict[str, float]:
        """Whether each classifier is right; of the larger, whether it says what it says of the original, and KL."""
        first, second = clean[2][""], seen[2][""]
        numbers = {"agrees": first.argmax() == second.argmax(), "kl": (first.exp() * (first - second)).sum()}
        for suffix in CLASSIFIERS:
            right, before = (int(p[2][suffix].argmax()) == self.labels[item.id] for p in (seen, clean))
            numbers |= {f"right{suffix}": right, f"right_gained{suffix}": right - before}
        return numbers | {"labelled": 1}
