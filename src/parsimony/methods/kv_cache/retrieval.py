"""What retrievers of a cache share: all entries lie in a host store, and attention sees those of the best units.

    sinks | units of the pool (in the store; the fetched ones also here) | buffer of the newest tokens

A unit is a set of entries of the pool with a short description in the index: their mean key, or bounds of it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch
from torch import Tensor

from parsimony.kernels import page_scores
from parsimony.kernels.common import usable
from parsimony.methods.kv_cache.budget import entries
from parsimony.methods.kv_cache.held import HALF, Held, Prefilled
from parsimony.methods.kv_cache.store import HostStore


def limit(budget: float, unit: str, prefilled: Prefilled) -> int:
    """Entries that a budget allows; one of the whole context allows for all that is decoded behind it too."""
    count = entries(budget, unit, prefilled)
    return sys.maxsize if count == len(prefilled) else count


def means(keys: Tensor, labels: Tensor, count: int) -> Tensor:
    """Mean key [H, count, d] float32 of each unit; keys [H, n, d], labels [H, n] int64; zeros for an empty unit."""
    H, n, d = keys.shape
    sums = keys.new_zeros(H, count, d, dtype=torch.float32)
    sums.scatter_add_(1, labels[:, :, None].expand(H, n, d), keys.float())
    return sums / sizes(labels, count).clamp(min=1)[:, :, None]


def sizes(labels: Tensor, count: int) -> Tensor:
    """How many entries of each head have each label: [H, count] float32; labels [H, n] int64."""
    one = torch.ones(1, device=labels.device)
    return one.new_zeros(len(labels), count).scatter_add_(1, labels, one.expand(labels.shape))


class Retrieving(Held):
    """One layer whose pool lies in a `HostStore`.

    Parameters
    ----------
    keys, values : Tensor [H, n, d]
    labels : Tensor [H, p] int64
        Unit of each entry of the pool, which comes behind the sinks; what comes behind the pool is the buffer.
    index : list of Tensor [H, U, d]
        Descriptions of all units.
    sinks : int
        Entries at the beginning that always stay.
    room : int
        Fetched entries that there is room for.

    Attributes
    ----------
    fetched : Tensor [2, H, m, d]
        Keys and values of the pool that attention sees.
    closed : list of Tensor [n] int64
        Labels of the oldest tokens of the buffer, unit by unit, that are ready to move to the pool.
    overlap : float
        Jaccard similarity of what was fetched with what the fetch before got, summed over fetches (a measurement: what
        it needs is not counted as held).
    """

    def __init__(self, keys: Tensor, values: Tensor, labels: Tensor, index: list[Tensor], sinks: int, room: int):
        tail = sinks + labels.shape[1]
        super().__init__(keys[:, tail:], values[:, tail:])
        self.sinks = torch.stack((keys[:, :sinks], values[:, :sinks])).to(HALF)
        self.store = HostStore(keys[:, sinks:tail], values[:, sinks:tail])
        self.labels, self.index = labels.int(), [each.to(HALF) for each in index]
        self.fetched = self.buffer.new_zeros(2, keys.shape[0], min(room, labels.shape[1]), keys.shape[2])
        self.closed: list[Tensor] = []
        self.overlap, self.last = 0.0, keys.new_zeros(keys.shape[0], 0, dtype=torch.bool)

    @property
    def moved(self) -> int:
        """Bytes copied back from the store so far."""
        return self.store.moved

    @property
    def numbers(self) -> dict[str, float]:
        """What benchmarks report: `overlap`, and of how many fetches that is the sum."""
        return {"overlap": self.overlap, "fetched_again": max(self.retrievals - 1, 0)}

    @property
    def open(self) -> int:
        """Tokens of the buffer that are in no unit yet."""
        return self.count - sum(map(len, self.closed))

    def close(self, labels: Tensor, index: list[Tensor]) -> None:
        """Make units of the oldest open tokens: their labels ([n] int64, from 0 on) and descriptions."""
        self.closed.append(labels + self.index[0].shape[1])
        self.index = [torch.cat((old, new.to(HALF)), 1) for old, new in zip(self.index, index, strict=True)]

    def leave(self, least: int) -> Tensor:
        """Move closed units, the oldest first, while ``least`` tokens stay in the buffer; what left, [2, H, n, d]."""
        labels = [self.labels.new_zeros(0)]
        while self.closed and self.count - sum(map(len, labels)) - len(self.closed[0]) >= least:
            labels.append(self.closed.pop(0).int())
        new = torch.cat(labels).expand(len(self.labels), -1)
        n = new.shape[1]
        left = self.buffer[:, :, :n]
        if n:
            self.store.append(*left)
            self.labels = torch.cat((self.labels, new), 1)
            self.buffer, self.count = self.buffer[:, :, n:].clone(), self.count - n
        return left

    def choose(self, scores: Tensor, count: int) -> Tensor:
        """Entries [H, <= count] of the units with the highest scores [H, U]; of the last unit the oldest that fit."""
        if usable(scores):
            return self.choose_unsorted(scores, count)
        rank = scores.argsort(dim=1, descending=True, stable=True).argsort(1)
        order = rank.gather(1, self.labels.long()).argsort(dim=1, stable=True)
        return order[:, :count].sort(1).values

    def choose_unsorted(self, scores: Tensor, count: int) -> Tensor:
        """The same, for a GPU: what is taken of each unit is known without sorting entries."""
        labels = self.labels.long()
        whole = sizes(labels, scores.shape[1]).int()
        taken = page_scores.taken(scores, whole, count)
        # At most one unit of a head is taken in part.
        part = ((taken > 0) & (taken < whole)).int()
        in_part = part.gather(1, labels) > 0
        first = in_part & (in_part.cumsum(1) <= (taken * part).sum(1, keepdim=True))
        chosen = first | (~in_part & (taken.gather(1, labels) > 0))
        return chosen.nonzero()[:, 1].view(len(labels), -1)

    def fetch(self, indices: Tensor) -> Tensor:
        """Copies [2, H, m, d] of entries of the pool ([H, m] int64)."""
        now = torch.zeros_like(self.labels, dtype=torch.bool).scatter_(1, indices, True)
        before = torch.cat((self.last, now.new_zeros(len(now), now.shape[1] - self.last.shape[1])), 1)
        either = (now | before).sum(1).clamp(min=1)
        self.overlap += float(((now & before).sum(1) / either).mean())
        self.last, self.retrievals = now, self.retrievals + 1
        return torch.stack(self.store.fetch(indices))

    def beside(self, fetched: Tensor) -> tuple[Tensor, Tensor, None]:
        """What attention sees: the sinks, these entries and the buffer."""
        keys, values = torch.cat((self.sinks, fetched, self.buffer[:, :, : self.count]), 2)
        return keys, values, None

    def tensors(self) -> Iterator[Tensor]:
        yield from super().tensors()
        yield from (self.sinks, self.fetched, self.labels, *self.index, *self.closed)
