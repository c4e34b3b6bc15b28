"""The classifier that judges digits, trained on real ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from parsimony.assets.mnist import HELD_OUT, digits
from parsimony.errors import UserError
from parsimony.models.digit_judge import Judge
from parsimony.recipes.training import step

BATCH = 128


def judge(out: Path, inputs: dict[str, Path], data: str, updates: int, floor: float, seed: int):
    """Train the judge; writes it with mean and covariance of its features of the digits held out.

    Raises
    ------
    UserError
        When it is right on less than ``floor`` of them.
    """
    images, classes = digits(inputs[data])
    network = judge_of(images[:-HELD_OUT], classes[:-HELD_OUT], updates, seed)
    with torch.no_grad():
        features = network.eval().features(images[-HELD_OUT:])
        right = float((network.head(features).argmax(-1) == classes[-HELD_OUT:]).float().mean())
    print(f"right on {right:.3f} of the digits held out", flush=True)
    if right < floor:
        raise UserError(f"the judge is right on {right:.3f} of the digits held out; it must be on {floor}")
    about = {"mean": features.mean(0), "covariance": torch.cov(features.T)}
    save_file({**network.state_dict(), **about}, out / "judge.safetensors")


def judge_of(images: Tensor, classes: Tensor, updates: int, seed: int) -> Judge:
    """A judge trained on images [N, 28, 28], moved by up to two pixels, and their classes [N]."""
    torch.manual_seed(seed)
    network, rng = Judge(), np.random.default_rng(seed)
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3)
    for n in range(updates):
        at = torch.from_numpy(rng.integers(0, len(images), BATCH))
        moved = images[at].roll(tuple(int(m) for m in rng.integers(-2, 3, 2)), (1, 2))
        step(network, F.cross_entropy(network(moved), classes[at]), 2e-3, n, updates, optimiser)
    return network
