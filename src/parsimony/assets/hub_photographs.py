"""Pictures of public data sets as squares, in the form of `assets.photographs`: what codecs learn from and code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from parsimony.benchmarks.hub_media import picture, rows


def cut(
    out: Path, inputs: dict[str, Path], column: str, train: list[str], test: list[str], side: int, most: int, seed: int
):
    """Write ``crops.safetensors`` (``train`` and ``test``, [N, side, side, 3] uint8) and their ``names.json``.

    Pictures are tiled from their upper left corner; what is left over is not used, nor are pictures that are smaller.

    Parameters
    ----------
    column : str
        Of the pictures.
    train, test : list of str
        ``asset/file`` in Parquet.
    most : int
        Squares to train on, drawn from all of them.
    """
    found = {name: squares(inputs, files, column, side) for name, files in (("train", train), ("test", test))}
    chosen = np.sort(np.random.default_rng(seed).permutation(len(found["train"][0]))[:most])
    found["train"] = [found["train"][0][n] for n in chosen], [found["train"][1][n] for n in chosen]
    save_file({name: np.stack(cuts) for name, (_, cuts) in found.items()}, out / "crops.safetensors")
    (out / "names.json").write_text(json.dumps({name: names for name, (names, _) in found.items()}) + "\n")


def squares(inputs: dict[str, Path], files: list[str], column: str, side: int) -> tuple[list[str], list[np.ndarray]]:
    """Names and squares of all pictures of these files."""
    names, cuts = [], []
    for each in files:
        asset, name = each.split("/", 1)
        for n, row in enumerate(rows(inputs[asset] / name, [column])):
            image = picture(row[column])
            for y in range(0, image.shape[0] - side + 1, side):
                for x in range(0, image.shape[1] - side + 1, side):
                    names.append(f"{asset}_{Path(name).stem}_{n:06d}_{y // side}_{x // side}")
                    cuts.append(image[y : y + side, x : x + side].copy())
    return names, cuts
