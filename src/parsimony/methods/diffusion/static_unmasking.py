"""Static unmasking: a fixed number of positions a pass, the best by some score (LLaDA, Dream and ParallelBench)."""

from __future__ import annotations

import torch
from torch import Tensor

from parsimony.errors import UserError
from parsimony.interfaces import Inputs
from parsimony.methods.diffusion.sampler import BlockSampler, View
from parsimony.models.masked import Masked


def topk_margin(view: View) -> Tensor:
    """Distance [B] of the two highest probabilities."""
    first, second = view.probs.topk(2, -1).values.unbind(-1)
    return first - second


SCORES = {
    "low_confidence": lambda view: view.confidence,  # Dream's maskgit_plus
    "topk_margin": topk_margin,
    "entropy": lambda view: (view.probs * (view.probs + 1e-10).log()).sum(-1),
    "random": lambda view: torch.from_numpy(view.rng.random(len(view.tokens))).to(view.tokens.device),
    "left_to_right": lambda view: -torch.arange(len(view.tokens), dtype=torch.float64, device=view.tokens.device),
}


class Static:
    """Commits ``per_step`` positions a pass, those with the highest score.

    Parameters
    ----------
    order : {"low_confidence", "topk_margin", "entropy", "random", "left_to_right"}
    per_step : int
        k; a block of B positions takes ceil(B / k) passes, and the remainder of B / passes goes to the first ones.
    block : int or None
    caching : {"none", "prefix", "dual"}
    temperature : float
    stop : {"never", "accepted", "any"}
        Early stop of the sampler.
    """

    def __init__(
        self,
        order: str = "low_confidence",
        per_step: int = 1,
        block: int | None = None,
        caching: str = "none",
        temperature: float = 0.0,
        stop: str = "never",
    ):
        if order not in SCORES:
            raise UserError(f"static: order {order!r} is not one of {', '.join(SCORES)}; mend its params")
        self.order, self.per_step, self.block = order, per_step, block
        self.caching, self.temperature, self.stop = caching, temperature, stop

    def build(self, model: Masked, inputs: Inputs) -> BlockSampler:
        """The block sampler with this strategy."""
        rule = TopK(self.order, self.per_step)
        return BlockSampler(model, rule, self.block, self.caching, self.temperature, stop=self.stop)


class TopK:
    """The strategy."""

    def __init__(self, order: str, per_step: int):
        self.score, self.per_step = SCORES[order], per_step

    def begin(self, size: int) -> None:
        passes = -(-size // self.per_step)
        self.schedule = [size // passes + (step < size % passes) for step in range(passes)]

    def commit(self, view: View) -> Tensor:
        return view.best(self.score(view), self.schedule[view.step])
