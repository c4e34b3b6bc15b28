"""H2O (Zhang et al., NeurIPS 2023, arXiv 2306.14048): heavy hitters and recent tokens, at every step."""

from __future__ import annotations

import torch
from torch import Tensor

from parsimony.interfaces import Inputs
from parsimony.methods.kv_cache.budget import entries
from parsimony.methods.kv_cache.held import Held, Holder, Prefilled
from parsimony.methods.kv_cache.scores import best, received
from parsimony.models.language import Language


class H2O:
    """Keeps the tokens that got most attention so far, summed over all queries, and the recent ones.

    Parameters
    ----------
    budget : float
    unit : {"tokens", "ratio", "bytes"}
    recent : float
        Share of the budget for recent tokens; one half, as published.
    """

    def __init__(self, budget: float, unit: str = "ratio", recent: float = 0.5):
        self.budget, self.unit, self.recent = budget, unit, recent

    def build(self, model: Language, inputs: Inputs) -> Holder:
        """The system."""
        return Holder(model, self.hold)

    def hold(self, prefilled: Prefilled) -> list[Held]:
        """Every layer with the same budget."""
        C = entries(self.budget, self.unit, prefilled)
        return [
            Heavy(keys, values, received(prefilled, n), C, int(C * self.recent))
            for n, (keys, values) in enumerate(zip(prefilled.keys, prefilled.values, strict=True))
        ]


class Heavy(Held):
    """Entries with the sums [H, n] of the attention that they got."""

    def __init__(self, keys: Tensor, values: Tensor, sums: Tensor, most: int, recent: int):
        super().__init__(keys, values)
        self.sums, self.most, self.recent = sums, most, recent
        self.whole = most >= self.count
        self.evict()

    def evict(self) -> None:
        """Drop the lightest entries that are not recent."""
        if self.count > self.most:
            old, H = self.count - self.recent, self.sums.shape[0]
            kept = best(self.sums[:, :old], self.most - self.recent)
            kept = torch.cat((kept, torch.arange(old, self.count, device=kept.device).expand(H, -1)), 1)
            self.keep(kept)
            self.sums = self.sums.gather(1, kept)

    def append(self, key: Tensor, value: Tensor) -> None:
        super().append(key, value)
        self.sums = torch.cat((self.sums, self.sums.new_zeros(len(self.sums), 1)), 1)

    def watch(self, q: Tensor, weights: Tensor) -> None:
        self.sums += weights.mean(1)
        self.evict()

    def tensors(self):
        yield from super().tensors()
        yield self.sums
