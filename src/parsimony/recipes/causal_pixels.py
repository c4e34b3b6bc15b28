"""The neural baseline of lossless coding: a causal network of digits, trained on the grids it will be used on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from parsimony.assets.mnist import HELD_OUT, pixels
from parsimony.errors import UserError
from parsimony.methods.lossless.causal_pixels import CausalPixelsCodec
from parsimony.models.causal_pixels import CausalPixels, IntegerPixels
from parsimony.recipes.training import step

BATCH = 4096
"""Pixels of an update."""


def train(out: Path, inputs: dict[str, Path], data: str, reach: int, hidden: int, updates: int, rate: float,
          floor: float, seed: int):  # fmt: skip
    """Train the network on single pixels of the digits.

    Raises
    ------
    UserError
        When its streams of a hundred digits held out take more than ``floor`` bits a pixel.
    """
    images = torch.from_numpy(pixels(inputs[data])[0])
    torch.manual_seed(seed)
    side = images.shape[1]
    network, rng = CausalPixels(side, reach, hidden), torch.Generator().manual_seed(seed)
    window = IntegerPixels(network.integers())
    training = images[:-HELD_OUT]
    framed = window.framed(len(training))
    framed[:, reach:, reach:-reach] = training
    optimiser = torch.optim.AdamW(network.parameters(), lr=rate)
    for n in range(updates):
        image = torch.randint(len(training), (BATCH,), generator=rng)
        row, column = torch.randint(side, (2, BATCH), generator=rng)
        at = torch.stack((row, column), 1)[:, None] + window.offsets + reach
        around = framed[image[:, None], at[..., 0], at[..., 1]]
        place = torch.cat((F.one_hot(row, side), F.one_hot(column, side)), 1) * 255.0
        logits = network(torch.cat((around, place), 1))
        loss = F.cross_entropy(logits, training[image, row, column].long())
        step(network, loss, rate, n, updates, optimiser)
        if (n + 1) % 200 == 0:
            print(f"update {n + 1}/{updates}: {loss.item() / np.log(2):.3f} bits a pixel", flush=True)
    save_file(network.integers(), out / "pixels.safetensors")
    apart = list(images[-HELD_OUT:][:100].numpy())
    streams = CausalPixelsCodec(out / "pixels.safetensors").encode_batch(apart)
    bits = 8 * sum(map(len, streams)) / 100 / side**2
    print(f"{bits:.4f} bits a pixel on 100 digits held out", flush=True)
    if bits > floor:
        raise UserError(f"the network needs {bits:.4f} bits a pixel for digits held out; it must need {floor} at most")
