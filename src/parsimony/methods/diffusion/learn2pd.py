"""Learn2PD with EoTP (Bao et al., ICLR 2026, arXiv 2509.25188): a small trained filter says what is final already."""

from __future__ import annotations

import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from parsimony.errors import UserError
from parsimony.interfaces import Inputs
from parsimony.methods.diffusion.sampler import BlockSampler, View
from parsimony.models.masked import Masked

BLOCK = 32
"""Positions of a block; the filter's weights are bound to it."""


class Learn2PD:
    """Commits the positions of which a filter believes that their prediction is what static decoding ends with.

    Parameters
    ----------
    tau : float
        Least belief; the most confident position is always committed.
    stop : {"never", "accepted", "any"}
        End-of-text prediction: cut the sequence behind the end, once it is committed ("accepted", the paper's rule)
        or merely predicted ("any", the official code's).
    caching : {"none", "prefix", "dual"}
    """

    def __init__(self, tau: float = 0.96, stop: str = "never", caching: str = "none"):
        if stop not in ("never", "accepted", "any"):
            raise UserError(f"learn2pd: stop {stop!r} is not one of never, accepted, any; mend its params")
        self.tau, self.stop, self.caching = tau, stop, caching

    def build(self, model: Masked, inputs: Inputs) -> BlockSampler:
        """The block sampler with the trained filter (the asset ``filter``)."""
        weights = load_file(inputs.assets["filter"] / "filter.safetensors")
        return BlockSampler(model, Filter(weights, self.tau), BLOCK, self.caching, stop=self.stop)


class Filter:
    """The strategy: Linear(32, 32), ReLU, Linear(32, 32) on the block's confidences, 2,112 parameters.

    Parameters
    ----------
    weights : dict
        ``w1``, ``w2`` [32, 32], ``b1``, ``b2`` [32].
    tau : float
    """

    def __init__(self, weights: dict[str, Tensor], tau: float):
        self.weights, self.tau = weights, tau

    def begin(self, size: int) -> None:
        pass

    def commit(self, view: View) -> Tensor:
        n = len(view.tokens)
        c = view.probs.gather(-1, view.tokens[:, None])[:, 0].float()  # of what stands there already as well
        belief = logits(self.weights, F.pad(c, (0, BLOCK - n))[None])[0, :n].sigmoid()
        return (belief > self.tau) | view.best(view.confidence, 1)


def logits(weights: dict[str, Tensor], confidences: Tensor) -> Tensor:
    """The filter's outputs [N, 32] for confidences [N, 32]."""
    hidden = F.linear(confidences, weights["w1"], weights["b1"]).relu()
    return F.linear(hidden, weights["w2"], weights["b2"])
