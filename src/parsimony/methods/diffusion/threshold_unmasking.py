"""Confidence-aware parallel unmasking: all that is sure enough (Fast-dLLM, Wu et al., arXiv 2505.22618)."""

from __future__ import annotations

from torch import Tensor

from parsimony.interfaces import Inputs
from parsimony.methods.diffusion.sampler import BlockSampler, View
from parsimony.models.masked import Masked


class Threshold:
    """Commits every position whose confidence is at least ``tau``, and always the best one.

    Parameters
    ----------
    tau : float
        1 is one position a pass, unless a probability is exactly 1.
    block : int or None
    caching : {"none", "prefix", "dual"}
    """

    def __init__(self, tau: float = 0.9, block: int | None = None, caching: str = "none"):
        self.tau, self.block, self.caching = tau, block, caching

    def build(self, model: Masked, inputs: Inputs) -> BlockSampler:
        """The block sampler with this strategy."""
        return BlockSampler(model, AtLeast(self.tau), self.block, self.caching)


class AtLeast:
    """The strategy."""

    def __init__(self, tau: float):
        self.tau = tau

    def begin(self, size: int) -> None:
        pass

    def commit(self, view: View) -> Tensor:
        return (view.confidence >= self.tau) | view.best(view.confidence, 1)
