"""Strategies that take tokens back, as ParallelBench states them: running confidence (RCR) and ReMDM."""

from __future__ import annotations

import torch
from torch import Tensor

from parsimony.interfaces import Inputs
from parsimony.methods.diffusion.sampler import BlockSampler, View
from parsimony.methods.diffusion.static_unmasking import TopK
from parsimony.models.masked import Masked


class RunningConfidence:
    """Keeps, after each pass, as many positions as the static schedule has, those of the highest confidence so far.

    Every masked position is filled in; what has been decided early and with little confidence may lose its place.

    Parameters
    ----------
    per_step : int
    block : int or None
    """

    def __init__(self, per_step: int = 1, block: int | None = 32):
        self.rule, self.block = HighestSoFar(per_step), block

    def build(self, model: Masked, inputs: Inputs) -> BlockSampler:
        """The block sampler with this strategy."""
        return BlockSampler(model, self.rule, self.block)


class HighestSoFar(TopK):
    """The strategy."""

    def __init__(self, per_step: int):
        super().__init__("low_confidence", per_step)

    def begin(self, size: int) -> None:
        super().begin(size)
        self.running = torch.zeros(size, dtype=torch.float64)

    def commit(self, view: View) -> Tensor:
        self.running = torch.maximum(self.running.to(view.tokens.device), view.confidence)
        self.kept = torch.zeros_like(view.masked)
        count = sum(self.schedule[: view.step + 1])
        self.kept[self.running.argsort(descending=True, stable=True)[:count]] = True
        return self.kept

    def take_back(self, view: View, chosen: Tensor) -> Tensor:
        """Decided positions whose place was taken."""
        return ~self.kept


class ReMdm:
    """Static unmasking that, once, with seven eighths of a block decided, takes back and decides again.

    For ``rounds`` passes the ``per_step`` least confident tokens are masked again while as many are committed.

    Parameters
    ----------
    per_step : int
    rounds : int
    block : int or None
    """

    def __init__(self, per_step: int = 1, rounds: int = 4, block: int | None = 32):
        self.rule, self.block = TakeBack(per_step, rounds), block

    def build(self, model: Masked, inputs: Inputs) -> BlockSampler:
        """The block sampler with this strategy."""
        return BlockSampler(model, self.rule, self.block)


class TakeBack:
    """The strategy."""

    def __init__(self, per_step: int, rounds: int):
        self.per_step, self.rounds = per_step, rounds

    def begin(self, size: int) -> None:
        self.left, self.sure = self.rounds, torch.full((size,), torch.inf, dtype=torch.float64)

    def commit(self, view: View) -> Tensor:
        chosen = view.best(view.confidence, self.per_step)
        self.sure = torch.where(chosen, view.confidence, self.sure.to(view.tokens.device))
        return chosen

    def take_back(self, view: View, chosen: Tensor) -> Tensor:
        """The least confident of what was decided before this pass."""
        decided, again = ~view.masked, torch.zeros_like(chosen)
        if self.left and int((decided | chosen).sum()) * 8 >= 7 * len(chosen):
            self.left -= 1
            before = self.sure.where(decided, torch.tensor(torch.inf, dtype=torch.float64))
            again[before.argsort(stable=True)[: min(self.per_step, int(decided.sum()))]] = True
        return again
