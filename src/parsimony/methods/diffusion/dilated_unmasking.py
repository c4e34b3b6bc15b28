"""DUS, as ParallelBench states it: a fixed order in which positions that are written at once stand far apart."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from parsimony.interfaces import Inputs
from parsimony.methods.diffusion.sampler import BlockSampler, View
from parsimony.models.masked import Masked


class Dilated:
    """Commits every (B/2)-th position of a block, then every (B/4)-th, and so on: log2 B passes.

    Positions with confidence below ``tau`` wait for the next level, except in the last one.  A level of which none is
    sure enough commits its best position, since each pass of ours makes progress.

    Parameters
    ----------
    tau : float
    block : int or None
    """

    def __init__(self, tau: float = 0.3, block: int | None = 32):
        self.rule, self.block = Levels(tau), block

    def build(self, model: Masked, inputs: Inputs) -> BlockSampler:
        """The block sampler with this strategy."""
        return BlockSampler(model, self.rule, self.block)


class Levels:
    """The strategy."""

    def __init__(self, tau: float):
        self.tau = tau

    def begin(self, size: int) -> None:
        count = max(1, math.ceil(math.log2(size)))
        self.level = torch.full((size,), count - 1)  # of each position; the last stride is 1
        for level in reversed(range(count)):
            self.level[:: max(1, size >> (level + 1))] = level
        last = self.level == count - 1
        if count > 1 and int(last.sum()) < int((self.level == count - 2).sum()):
            self.level[last] = count - 2

    def commit(self, view: View) -> Tensor:
        planned = view.masked & (self.level <= view.step).to(view.masked.device)
        if view.step < int(self.level.max()):
            sure = planned & (view.confidence >= self.tau)
            planned = sure if bool(sure.any()) else view.best(view.confidence.where(planned, -torch.inf), 1)
        return planned
