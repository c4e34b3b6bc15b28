"""Photographs inside packages, cut into squares: the one split of what codecs are trained on and measured on.

No picture is on both sides, nor is a scene.  Squares to measure on come from pictures that show no grid of an earlier
JPEG; pictures that do are halved first (mean of 2 by 2 pixels), which averages it away, and only trained on.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import load_file, save_file

SIDE = 256
OVERLAP = 14
"""Neighbouring squares share at most so many rows or columns, so that 500 pixels hold two."""


def cut(out: Path, inputs: dict[str, Path], test: list[str], train: list[str], halved: list[str]):
    """Write ``crops.safetensors`` (``test`` and ``train``, [N, 256, 256, 3] uint8) and their ``names.json``.

    Parameters
    ----------
    test, train, halved : list of str
        ``asset/file`` of pictures to measure on, to train on, and to train on at half their size.
    """
    crops, names = {}, {}
    for side, pictures in (("test", test), ("train", [*train, *halved])):
        pairs = [pair for name in pictures for pair in squares(name, picture(inputs, name, name in halved))]
        names[side], arrays = zip(*pairs, strict=True)
        crops[side] = np.stack(arrays)
    save_file(crops, out / "crops.safetensors")
    (out / "names.json").write_text(json.dumps(names, indent=1) + "\n")


def crops(folder: Path, side: str) -> tuple[list[str], np.ndarray]:
    """Names and squares [N, 256, 256, 3] uint8 of the side ("test" or "train") of a fetched asset."""
    names = json.loads((Path(folder) / "names.json").read_text())[side]
    return names, load_file(Path(folder) / "crops.safetensors")[side]


def picture(inputs: dict[str, Path], name: str, halved: bool = False) -> np.ndarray:
    """Picture [H, W, 3] uint8 of ``asset/file``."""
    asset, file = name.split("/", 1)
    with Image.open(inputs[asset] / file) as image:
        image = image.convert("RGB")
        return np.asarray(image.reduce(2) if halved else image)


def squares(name: str, image: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Named squares of an image [H, W, 3]: as many as fit with `OVERLAP`, evenly spaced, one in the middle."""
    down, across = (starts(length) for length in image.shape[:2])
    stem = Path(name).stem
    return [
        (f"{stem}_{m}_{n}", image[y : y + SIDE, x : x + SIDE]) for m, y in enumerate(down) for n, x in enumerate(across)
    ]


def starts(length: int) -> list[int]:
    """Where squares begin along one side of a picture."""
    count, room = (length - OVERLAP) // (SIDE - OVERLAP), length - SIDE
    return [room // 2] if count == 1 else [room * n // (count - 1) for n in range(count)]
