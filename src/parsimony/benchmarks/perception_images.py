"""Photographs to an ImageNet classifier: is the class right, and is it what it says of the original?

Few photographs in packages show a known class, so most of what is measured is agreement with the classifier's own
answer on the original, which is not accuracy and is not called so.  Deep features are the classifier's own here: that
they agree when it does is half built in, which the benchmarks with other networks (digits, pages) are not open to.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from parsimony.assets.photographs import SIDE, crops
from parsimony.benchmarks.perception import NETWORK, Eyes, Perception, as_seen, image_likeness
from parsimony.interfaces import Item

LABELS = {
    "skimage_samples/chelsea.png": (281, 282, 285),  # a cat: tabby, tiger, Egyptian
    "skimage_samples/coffee.png": (967, 968),  # espresso, cup
    "opencv_labelled/apple.jpg": (948,),  # Granny Smith
    "opencv_labelled/fruits.jpg": (950, 951),  # shows an orange and a lemon
    "opencv_labelled/orange.jpg": (950,),
    "opencv_labelled/squirrel_cls.jpg": (335,),  # fox squirrel
}
"""Classes of ImageNet that each photograph shows.  None of them is among those that codecs are trained on."""
PART = 0.8
"""Of the side of a photograph's square, that of the views of its corners."""
SQUARES = ("photographs", "photographs_debian")


class PerceptionImages(Perception):
    """Views of photographs of known class, six each (category `labelled`), and squares of others (`unlabelled`).

    Views of one photograph are not independent; intervals, which take them for that, are too narrow.
    """

    needed = (NETWORK, "skimage_samples")
    category = "labelled"

    def load(self, paths: dict[str, Path], seed: int) -> list[Item]:
        self.eyes, self.labels, found = Eyes(paths[NETWORK]), {}, []
        for name, labels in LABELS.items():
            asset, file = name.split("/")
            if asset in paths:
                for n, view in enumerate(views(paths[asset] / file)):
                    key = f"{Path(file).stem}_{n}"
                    self.samples[key], self.labels[key] = view, labels
                    found.append((n, Item(key, "labelled", (), name)))
        for asset in SQUARES:
            for n, (key, square) in enumerate(zip(*crops(paths[asset], "test"), strict=True) if asset in paths else ()):
                self.samples[f"square_{key}"] = square
                found.append((n, Item(f"square_{key}", "unlabelled", (), asset)))
        return [item for _, item in sorted(found, key=lambda pair: pair[0])]

    def skipped(self, missing: dict[str, str]) -> dict[str, str]:
        return super().skipped(missing) | {key: missing[key] for key in ("opencv_labelled", *SQUARES) if key in missing}

    def perceive(self, item: Item, image: np.ndarray):
        """Features of both networks of the image at the classifier's size, and log probabilities [1000]."""
        features, control = self.eyes.features(as_seen(image))
        return features, control, self.eyes.trained.head(features[-1])[0].double().log_softmax(-1)

    def likeness(self, x: np.ndarray, y: np.ndarray, clean, seen) -> dict[str, float]:
        return image_likeness(x, y, clean[:2], seen[:2])

    def score(self, item: Item, clean, seen) -> dict[str, float]:
        """Whether the likeliest class is that of the original, and right; KL in nats from that of the original."""
        first, second = clean[2], seen[2]
        numbers = {"agrees": first.argmax() == second.argmax(), "kl": (first.exp() * (first - second)).sum()}
        if item.id in self.labels:
            right, before = (int(p.argmax()) in self.labels[item.id] for p in (second, first))
            numbers |= {"right": right, "right_gained": right - before, "labelled": 1}
        return numbers | ({} if item.id in self.labels else {"right": 0, "right_gained": 0, "labelled": 0})


def views(file: Path) -> list[np.ndarray]:
    """Six views [256, 256, 3] of a photograph: its middle square, that mirrored, and its corners."""
    with Image.open(file) as image:
        image = image.convert("RGB")
    width, height = image.size
    side = min(width, height)
    left, top, part = (width - side) // 2, (height - side) // 2, round(PART * side)
    square = image.crop((left, top, left + side, top + side))
    corners = [(x, y) for y in (0, side - part) for x in (0, side - part)]
    many = [square, square.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    many += [square.crop((x, y, x + part, y + part)) for x, y in corners]
    return [np.asarray(each.resize((SIDE, SIDE), Image.Resampling.LANCZOS)) for each in many]
