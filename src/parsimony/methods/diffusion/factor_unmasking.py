"""Unmasking by factor: as many positions as are sure enough together (Fast-dLLM, arXiv 2505.22618; ParallelBench)."""

from __future__ import annotations

import torch
from torch import Tensor

from parsimony.interfaces import Inputs
from parsimony.methods.diffusion.sampler import BlockSampler, View
from parsimony.models.masked import Masked


class Factor:
    """Commits the n most confident positions, the largest n of which the i-th has confidence >= 1 - f / (i + 1).

    The first is always in.  ParallelBench's rule; the Fast-dLLM code also takes the item that fails when it is the
    last candidate, which is not copied.

    Parameters
    ----------
    f : float
    block : int or None
    caching : {"none", "prefix", "dual"}
    """

    def __init__(self, f: float = 1.0, block: int | None = None, caching: str = "none"):
        self.f, self.block, self.caching = f, block, caching

    def build(self, model: Masked, inputs: Inputs) -> BlockSampler:
        """The block sampler with this strategy."""
        return BlockSampler(model, WithinFactor(self.f), self.block, self.caching)


class WithinFactor:
    """The strategy."""

    def __init__(self, f: float):
        self.f = f

    def begin(self, size: int) -> None:
        pass

    def commit(self, view: View) -> Tensor:
        ranked = view.confidence.sort(descending=True, stable=True).values[: int(view.masked.sum())]
        i = torch.arange(1, len(ranked) + 1, device=ranked.device)
        enough = int((ranked >= 1 - self.f / (i + 1)).sum())  # bound and confidences cross once
        return view.best(view.confidence, max(enough, 1))
