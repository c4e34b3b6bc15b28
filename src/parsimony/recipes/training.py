"""One update of a small network: what recipes share."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def schedule(n: int, updates: int) -> float:
    """Share of the learning rate in the n-th update: a warm-up over 50, then a cosine down to a fiftieth."""
    return min(1, (n + 1) / 50) * max(0.02, 0.5 + 0.5 * math.cos(math.pi * n / updates))


def step(optimiser, loss: Tensor, rate: float, n: int, updates: int) -> None:
    """One update with a warm-up and a cosine."""
    for group in optimiser.param_groups:
        group["lr"] = rate * schedule(n, updates)
    optimiser.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(optimiser.param_groups[0]["params"], 1.0)
    optimiser.step()
