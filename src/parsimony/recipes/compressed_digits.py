"""A judge of digits that were JPEG files: what training on lossy data does to accuracy on lossy and on clean data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from parsimony.assets.mnist import HELD_OUT, digits
from parsimony.benchmarks.perception_digits import ACROSS, cells, sheet
from parsimony.errors import UserError
from parsimony.methods.image.classic import PillowCodec
from parsimony.recipes.digit_judge import judge_of


def judge(
    out: Path, inputs: dict[str, Path], data: str, qualities: list[int], updates: int, floor: float, seed: int
):  # fmt: skip
    """Train the judge of `digit_judge` on the same digits, but each as a JPEG file of one of ``qualities`` left it.

    Raises
    ------
    UserError
        When it is right on less than ``floor`` of the digits held out, compressed in the same way.
    """
    images, classes = digits(inputs[data])
    lossy = compressed(images, qualities)
    network = judge_of(lossy[:-HELD_OUT], classes[:-HELD_OUT], updates, seed).eval()
    with torch.no_grad():
        shares = [(network(x[-HELD_OUT:]).argmax(-1) == classes[-HELD_OUT:]).float().mean() for x in (lossy, images)]
    print(f"right on {shares[0]:.3f} of compressed digits held out, and on {shares[1]:.3f} of clean ones", flush=True)
    if shares[0] < floor:
        raise UserError(
            f"the judge is right on {shares[0]:.3f} of the compressed digits held out; it must be on {floor}"
        )
    save_file(network.state_dict(), out / "judge.safetensors")


def compressed(images: Tensor, qualities: list[int]) -> Tensor:
    """Digits [N, 28, 28] as sheets of JPEG files leave them; the sheets take the qualities in turn."""
    codecs = [PillowCodec("JPEG", False, quality) for quality in qualities]
    parts = []
    for n, some in enumerate(images.split(ACROSS**2)):
        codec = codecs[n % len(codecs)]
        decoded = codec.decode(codec.encode(np.stack([sheet(some)] * 3, -1)))
        parts.append(cells(decoded.astype(np.float64).mean(-1).round().astype(np.uint8)))
    return torch.cat(parts)
