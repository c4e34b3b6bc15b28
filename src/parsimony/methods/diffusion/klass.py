"""KLASS, as ParallelBench states it: certain positions whose prediction has stopped moving."""

from __future__ import annotations

import torch
from torch import Tensor

from parsimony.interfaces import Inputs
from parsimony.methods.diffusion.sampler import BlockSampler, View
from parsimony.models.masked import Masked


class Klass:
    """Commits where confidence exceeds ``tau`` and KL(p_t || p_t-1) has been below ``epsilon`` for ``history`` passes.

    Where there is no such position, the most confident one.

    Parameters
    ----------
    tau : float
    epsilon : float
        In nats.
    history : int
    block : int or None
    """

    def __init__(self, tau: float = 0.9, epsilon: float = 0.01, history: int = 2, block: int | None = 32):
        self.rule, self.block = Still(tau, epsilon, history), block

    def build(self, model: Masked, inputs: Inputs) -> BlockSampler:
        """The block sampler with this strategy."""
        return BlockSampler(model, self.rule, self.block)


class Still:
    """The strategy."""

    def __init__(self, tau: float, epsilon: float, history: int):
        self.tau, self.epsilon, self.history = tau, epsilon, history

    def begin(self, size: int) -> None:
        self.before, self.calm = None, torch.zeros(size, dtype=torch.int64)

    def commit(self, view: View) -> Tensor:
        p = view.probs  # [B, V]
        self.calm = self.calm.to(p.device)
        if self.before is not None:
            divergence = (p * ((p + 1e-12) / (self.before + 1e-12)).log()).sum(-1)  # [B]
            self.calm = torch.where(divergence < self.epsilon, self.calm + 1, 0)
        self.before = p
        sure = view.masked & (view.confidence > self.tau) & (self.calm >= self.history)
        return sure if bool(sure.any()) else view.best(view.confidence, 1)
