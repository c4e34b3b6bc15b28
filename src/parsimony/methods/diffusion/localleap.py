"""LocalLeap (Kong et al., 2025, arXiv 2510.07081): a lower threshold near what is certain.

The official code was not available; rules and defaults are those of a third-party copy of its generation file.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from parsimony.interfaces import Inputs
from parsimony.methods.diffusion.sampler import BlockSampler, View
from parsimony.models.masked import Masked


class LocalLeap:
    """Threshold decoding, relaxed to ``tau_r`` within ``width`` positions of an anchor.

    An anchor is a position that is masked before this pass and reaches ``tau_a`` in it.  With ``width`` 0 or ``tau_r``
    equal to ``tau_a`` this is `Threshold`.

    Parameters
    ----------
    tau_a, tau_r : float
        Thresholds everywhere and near an anchor (the paper's kappa and tau).
    width : int
        W.
    block : int or None
    caching : {"none", "prefix", "dual"}
    """

    def __init__(
        self, tau_a: float = 0.9, tau_r: float = 0.75, width: int = 4, block: int | None = 32, caching: str = "none"
    ):
        self.rule, self.block, self.caching = Leap(tau_a, tau_r, width), block, caching

    def build(self, model: Masked, inputs: Inputs) -> BlockSampler:
        """The block sampler with this strategy."""
        return BlockSampler(model, self.rule, self.block, self.caching)


class Leap:
    """The strategy."""

    def __init__(self, tau_a: float, tau_r: float, width: int):
        self.tau_a, self.tau_r, self.width = tau_a, tau_r, width

    def begin(self, size: int) -> None:
        pass

    def commit(self, view: View) -> Tensor:
        c = view.confidence  # [B], -inf where nothing is masked
        anchors = c >= self.tau_a
        near = F.max_pool1d(anchors.double()[None], 2 * self.width + 1, 1, self.width)[0] > 0
        return anchors | near & (c >= self.tau_r) | view.best(c, 1)
