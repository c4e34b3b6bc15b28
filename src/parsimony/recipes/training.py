"""One update of a small network: what recipes share."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def schedule(n: int, updates: int) -> float:
    """Share of the learning rate in the n-th update: a warm-up over 50, then a cosine down to a fiftieth."""
    return min(1, (n + 1) / 50) * max(0.02, 0.5 + 0.5 * math.cos(math.pi * n / updates))


def step(network, loss: Tensor, rate: float, n: int, updates: int, *optimisers) -> None:
    """One update of all parameters with a warm-up and a cosine; each belongs to one of the optimisers."""
    network.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = rate * schedule(n, updates)
        optimiser.step()


def fit(network, loss: Callable[[], Tensor], updates: int, rate: float) -> None:
    """Train a language model of transformers: Muon for the matrices of its layers, AdamW for the rest.

    Parameters
    ----------
    loss : callable
        Gives the loss on the next batch.  One in 100 is printed.
    """
    matrices = [p for p in network.model.layers.parameters() if p.ndim == 2]
    inside = set(map(id, matrices))
    rest = [p for p in network.parameters() if id(p) not in inside]
    optimisers = (
        torch.optim.Muon(matrices, lr=rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.98), weight_decay=0.0),
    )
    network.train()
    for n in range(updates):
        now = loss()
        step(network, now, rate, n, updates, *optimisers)
        if (n + 1) % 100 == 0:
            print(f"update {n + 1}/{updates}: loss {now.item():.4f}", flush=True)
    network.eval()
