"""How much attention prefilled tokens got, from the recorded queries."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from parsimony.methods.kv_cache.held import Prefilled

ROWS = 32
"""Queries at a time: their weights of all heads fit the cache of a core, and no T by T matrix is held."""


def received(prefilled: Prefilled, layer: int, first: int = 0) -> Tensor:
    """Attention [H, T] each token got from the queries from ``first`` on, summed; the mean over a group's heads."""
    K, T = prefilled.keys[layer], len(prefilled)
    queries = prefilled.queries[layer] / K.shape[-1] ** 0.5  # [H, R, T, d]
    got = K.new_zeros(len(K), T, dtype=torch.float32)
    for begin in range(first, T, ROWS):
        end = min(begin + ROWS, T)
        q = queries[:, :, begin:end]
        scores = (q.flatten(1, 2) @ K[:, :end].mT).unflatten(1, q.shape[1:3])  # [H, R, n, end]
        later = torch.ones(end - begin, end - begin, dtype=torch.bool, device=K.device).triu(1)
        scores[..., begin:].masked_fill_(later, -torch.inf)
        got[:, :end] += scores.softmax(-1).sum((1, 2)) / q.shape[1]
    return got


def pooled(scores: Tensor, kernel: int, kind: str) -> Tensor:
    """Scores [H, n] smoothed over ``kernel`` neighbours, by their mean (zeros beyond the ends) or maximum."""
    pool = F.avg_pool1d if kind == "mean" else F.max_pool1d
    return pool(scores[:, None], kernel, 1, kernel // 2)[:, 0]


def best(scores: Tensor, count: int) -> Tensor:
    """Indices [H, count] of the highest scores [H, n], ascending; the lowest index wins ties."""
    return scores.argsort(dim=-1, descending=True, stable=True)[:, :count].sort(-1).values
