"""The EB-sampler, as ParallelBench states it: as many positions as a budget of joint entropy allows."""

from __future__ import annotations

from torch import Tensor

from parsimony.interfaces import Inputs
from parsimony.methods.diffusion.sampler import BlockSampler, View
from parsimony.models.masked import Masked


class EntropyBounded:
    """Commits the n least entropic positions with (sum of their entropies) - (the largest of them) <= ``gamma``.

    That difference bounds their mutual information.  ParallelBench's code takes positions by index and counts
    committed ones, which is not copied.

    Parameters
    ----------
    gamma : float
        In nats.
    block : int or None
    """

    def __init__(self, gamma: float = 0.1, block: int | None = 32):
        self.rule, self.block = Budget(gamma), block

    def build(self, model: Masked, inputs: Inputs) -> BlockSampler:
        """The block sampler with this strategy."""
        return BlockSampler(model, self.rule, self.block)


class Budget:
    """The strategy."""

    def __init__(self, gamma: float):
        self.gamma = gamma

    def begin(self, size: int) -> None:
        pass

    def commit(self, view: View) -> Tensor:
        ranked = view.entropy[view.masked].sort().values
        n = int((ranked.cumsum(0) - ranked <= self.gamma).sum())  # sorted, the largest so far is the last
        return view.best(-view.entropy, max(n, 1))
