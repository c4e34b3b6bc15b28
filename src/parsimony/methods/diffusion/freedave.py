"""FreeDave (Wu and Zhang, 2025, arXiv 2510.00294): lossless parallel decoding, drafts and verification by one model.

drafts 1..d: the 1, 2, ..., d most confident predictions filled in (nested)
one batched pass over all drafts; the static rule applied to each gives its target
as long as draft j + 1 equals the target of draft j, it is what static decoding would have reached
"""

from __future__ import annotations

from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from parsimony.errors import UserError
from parsimony.interfaces import Cost, Generation, Inputs
from parsimony.methods.diffusion.caches import PASSES
from parsimony.methods.diffusion.sampler import View, until_stop
from parsimony.models.masked import Masked


class FreeDave:
    """Static decoding, one token a step by confidence, in fewer passes.

    Parameters
    ----------
    drafts : int
        d; a pass runs up to d copies of the block.
    block : int or None
    caching : {"none", "prefix", "dual"}
        The reference is the static decoder with the same.
    """

    def __init__(self, drafts: int = 4, block: int | None = None, caching: str = "none"):
        self.drafts, self.block, self.caching = drafts, block, caching

    def build(self, model: Masked, inputs: Inputs) -> FreeDaveSampler:
        """The sampler.

        Raises
        ------
        UserError
            For a model with shifted outputs and a cache: its refresh commits a token of its own.
        """
        if model.shifted and self.caching != "none":
            raise UserError("freedave: a model whose outputs are shifted is decoded without a cache; set caching: none")
        return FreeDaveSampler(model, self.drafts, self.block, self.caching)


class FreeDaveSampler:
    """Generates by drafting and verifying, block by block."""

    def __init__(self, model: Masked, drafts: int, block: int | None, caching: str):
        self.model, self.drafts, self.block, self.caching = model, drafts, block, caching

    def generate(self, prompt_ids: Tensor, limit: int, rng: np.random.Generator) -> Generation:
        """What the static decoder gives for the same prompt and limit."""
        return self.unmask(PASSES[self.caching](self.model), prompt_ids, limit, rng)

    def unmask(self, network, prompt: Tensor, limit: int, rng: np.random.Generator) -> Generation:
        """The same with any ``network`` that has the methods of `caches.Exact`."""
        mask, P, cost = self.model.mask_id, len(prompt), Cost()
        x = torch.cat((prompt, torch.full((limit,), mask, dtype=torch.int64)))
        for begin in range(P, P + limit, self.block or max(limit, 1)):
            stop = min(begin + (self.block or limit), P + limit)
            began = perf_counter()
            logits = network.refresh(x, begin)[: stop - begin]
            network.enter(begin, stop)
            cost.passes += 1
            cost.accepted_per_pass.append(0)
            cost.verify_seconds += perf_counter() - began
            here = View.of(logits, x[begin:stop], mask, 0, 0.0, rng)
            while left := int(here.masked.sum()):
                began = perf_counter()
                order = here.confidence.argsort(descending=True, stable=True)[: min(self.drafts, left)]
                states = x.repeat(len(order), 1)
                for k, position in enumerate(order.tolist()):
                    states[k:, begin + position] = here.tokens[position]
                if left == 1:
                    x = states[0]
                    cost.accepted_per_pass[-1] += 1
                    break
                passed = perf_counter()
                logits = network.steps(states, begin, stop)
                cost.passes += 1
                cost.verify_seconds += perf_counter() - passed
                views = [View.of(logits[k], states[k, begin:stop], mask, 1, 0.0, rng) for k in range(len(order))]
                best = 0
                while best + 1 < len(order) and torch.equal(
                    states[best + 1, begin:stop], successor(views[best], states[best, begin:stop])
                ):
                    best += 1
                x, here = states[best], views[best]
                cost.drafted += len(order)
                cost.accepted += best + 1
                cost.accepted_per_pass.append(best + 1)
                cost.draft_seconds += passed - began
        cost.rows, cost.cache_bytes = network.rows, network.nbytes()
        return Generation(until_stop(x[P:], self.model.stop_ids), cost)


def successor(view: View, row: Tensor) -> Tensor:
    """The static step: ``row`` [B] with its most confident masked position filled."""
    chosen = view.best(view.confidence, 1)
    return torch.where(chosen, view.tokens, row)
