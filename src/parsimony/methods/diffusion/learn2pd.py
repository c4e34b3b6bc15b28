"""Learn2PD with EoTP (Bao et al., ICLR 2026, arXiv 2509.25188): a small trained filter says what is final already."""

from __future__ import annotations

import numpy as np
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from parsimony.errors import UserError
from parsimony.interfaces import Generation, Inputs
from parsimony.methods.diffusion.sampler import BlockSampler, View
from parsimony.methods.diffusion.static_unmasking import TopK
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
    gate : {"filter", "oracle"}
        The trained filter, or what it was trained on: an oracle that has seen the static answer (a bound, no method).
    """

    def __init__(self, tau: float = 0.96, stop: str = "never", caching: str = "none", gate: str = "filter"):
        if stop not in ("never", "accepted", "any"):
            raise UserError(f"learn2pd: stop {stop!r} is not one of never, accepted, any; mend its params")
        if gate not in ("filter", "oracle"):
            raise UserError(f"learn2pd: gate {gate!r} is neither filter nor oracle; mend its params")
        self.tau, self.stop, self.caching, self.gate = tau, stop, caching, gate

    def build(self, model: Masked, inputs: Inputs) -> BlockSampler:
        """The block sampler with the trained filter (the asset ``filter``) or the oracle."""
        if self.gate == "oracle":
            return OracleSampler(model, Oracle(), BLOCK)
        weights = load_file(inputs.assets["filter"] / "filter.safetensors")
        weights = {name: tensor.to(model.decoder.device) for name, tensor in weights.items()}
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


class OracleSampler(BlockSampler):
    """Decodes statically first, at no cost, and then again with that answer before its eyes."""

    def generate(self, prompt_ids: Tensor, limit: int, rng: np.random.Generator) -> Generation:
        """The static answer, in the oracle's passes."""
        static = BlockSampler(self.model, Whole(), BLOCK)
        static.generate(prompt_ids, limit, rng)
        self.strategy.answer = static.strategy.tokens
        return super().generate(prompt_ids, limit, rng)


class Whole(TopK):
    """The static strategy, which notes the blocks it ends with (an answer may go on behind its end)."""

    def __init__(self):
        super().__init__("low_confidence", 1)
        self.tokens: list[Tensor] = []

    def commit(self, view: View) -> Tensor:
        if view.step == len(view.tokens) - 1:  # one mask is left, and this pass predicts it
            self.tokens.append(view.tokens)
        return super().commit(view)


class Oracle:
    """The strategy: every position whose prediction is that of the answer; all of a block when nothing moves."""

    def begin(self, size: int) -> None:
        self.wanted, self.before = self.answer.pop(0), None

    def commit(self, view: View) -> Tensor:
        right = view.tokens == self.wanted
        if self.before is not None and bool((view.tokens == self.before).all()):
            right = view.masked.clone()
            view.tokens[:] = self.wanted
        self.before = view.tokens.clone()
        return right & view.masked
