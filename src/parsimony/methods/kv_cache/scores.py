"""How much attention prefilled tokens got, from the recorded queries."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from parsimony.methods.kv_cache.held import Prefilled

ROWS = 256
"""Queries at a time, so that no T by T matrix is held."""


def weights(prefilled: Prefilled, layer: int, first: int) -> Iterator[Tensor]:
    """Attention weights [H, R, n, T] of the queries from ``first`` on, some rows at a time."""
    K, T = prefilled.keys[layer], len(prefilled)
    for begin in range(first, T, ROWS):
        q = prefilled.queries[layer][:, :, begin : begin + ROWS]
        scores = q @ K[:, None].mT / K.shape[-1] ** 0.5
        later = torch.arange(T) > torch.arange(begin, begin + q.shape[2])[:, None]
        yield scores.masked_fill(later, -torch.inf).softmax(-1)


def received(prefilled: Prefilled, layer: int, first: int = 0) -> Tensor:
    """Attention [H, T] each token got from the queries from ``first`` on, summed; the mean over a group's heads."""
    return sum(part.mean(1).sum(1) for part in weights(prefilled, layer, first))


def pooled(scores: Tensor, kernel: int, kind: str) -> Tensor:
    """Scores [H, n] smoothed over ``kernel`` neighbours, by their mean (zeros beyond the ends) or maximum."""
    pool = F.avg_pool1d if kind == "mean" else F.max_pool1d
    return pool(scores[:, None], kernel, 1, kernel // 2)[:, 0]


def best(scores: Tensor, count: int) -> Tensor:
    """Indices [H, count] of the highest scores [H, n], ascending; the lowest index wins ties."""
    return scores.argsort(dim=-1, descending=True, stable=True)[:, :count].sort(-1).values
