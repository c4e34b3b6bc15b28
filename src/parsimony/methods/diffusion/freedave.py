"""FreeDave (Wu and Zhang, 2025, arXiv 2510.00294): lossless parallel decoding, drafts and verification by one model.

drafts 1..d: the 1, 2, ..., d most confident predictions filled in (nested)
one batched pass over all drafts; the static step applied to each gives its target
a draft all of whose tokens are in the target of an accepted one is what static decoding would have reached
"""

from __future__ import annotations

from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from parsimony.errors import UserError
from parsimony.interfaces import Cost, Generation, Inputs
from parsimony.methods.diffusion.caches import PASSES
from parsimony.methods.diffusion.sampler import View, unanswered, until_stop
from parsimony.methods.diffusion.static_unmasking import TopK
from parsimony.methods.diffusion.threshold_unmasking import AtLeast
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
    layout : {"batch", "tree"}
        Over a cache, drafts are rows of a batch with a copy of it each, or branches of one row that see it and
        themselves; without one they are rows of a batch.
    tau : float or None
        FreeDave++: a step is that of threshold decoding (all positions with confidence ``tau``, at least the best),
        and so is the first draft.  It is not lossless: a draft that agrees with a step may skip what that step led to.
    """

    def __init__(
        self,
        drafts: int = 4,
        block: int | None = None,
        caching: str = "none",
        layout: str = "batch",
        tau: float | None = None,
    ):
        if layout not in ("batch", "tree"):
            raise UserError(f"freedave: layout {layout!r} is neither batch nor tree; mend its params")
        self.drafts, self.block, self.caching, self.layout = drafts, block, caching, layout
        self.rule = TopK("low_confidence", 1) if tau is None else AtLeast(tau)

    def build(self, model: Masked, inputs: Inputs) -> FreeDaveSampler:
        """The sampler.

        Raises
        ------
        UserError
            For a model with shifted outputs and a cache: its refresh commits a token of its own.
        """
        if model.shifted and self.caching != "none":
            raise UserError("freedave: a model whose outputs are shifted is decoded without a cache; set caching: none")
        return FreeDaveSampler(model, self)


class FreeDaveSampler:
    """Generates by drafting and verifying, block by block."""

    def __init__(self, model: Masked, settings: FreeDave):
        self.model, self.settings = model, settings

    def generate(self, prompt_ids: Tensor, limit: int, rng: np.random.Generator) -> Generation:
        """What the decoder of its steps gives for the same prompt and limit."""
        network = PASSES[self.settings.caching](self.model)
        network.layout = self.settings.layout
        return self.unmask(network, prompt_ids, limit, rng)

    def unmask(self, network, prompt: Tensor, limit: int, rng: np.random.Generator) -> Generation:
        """The same with any ``network`` that has the methods of `caches.Exact`."""
        mask, P, cost, rule = self.model.mask_id, len(prompt), Cost(), self.settings.rule
        x = unanswered(prompt, limit, mask).to(network.device)
        block = self.settings.block or max(limit, 1)
        for begin in range(P, P + limit, block):
            stop = min(begin + block, P + limit)
            began = perf_counter()
            logits = network.refresh(x, begin)[: stop - begin]
            network.enter(begin, stop)
            cost.passes += 1
            cost.accepted_per_pass.append(0)
            cost.verify_seconds += perf_counter() - began
            rule.begin(stop - begin)
            here = View.of(logits, x[begin:stop], mask, 0, 0.0, rng)
            while left := int(here.masked.sum()):
                began = perf_counter()
                first = int(rule.commit(here).sum())  # what a step writes is the most confident anyway
                order = here.confidence.argsort(descending=True, stable=True)[
                    : min(first + self.settings.drafts - 1, left)
                ]
                states = x.repeat(len(order) - first + 1, 1)
                for k, position in enumerate(order.tolist()):
                    states[max(k - first + 1, 0) :, begin + position] = here.tokens[position]
                if first == left:
                    x = states[0]
                    cost.accepted_per_pass[-1] += left
                    break
                passed = perf_counter()
                logits = network.steps(states, begin, stop)
                cost.passes += 1
                cost.verify_seconds += perf_counter() - passed
                rows = states[:, begin:stop]
                views = [View.of(logits[k], row, mask, 0, 0.0, rng) for k, row in enumerate(rows)]
                best, further = 0, [0]
                while further:
                    best = further[-1]
                    target = torch.where(rule.commit(views[best]), views[best].tokens, rows[best])
                    agree = ((rows == mask) | (rows == target)).all(1)
                    further = [k for k in agree.nonzero()[:, 0].tolist() if k > best]
                x, here = states[best], views[best]
                cost.drafted += len(states)
                cost.accepted += best + 1
                cost.accepted_per_pass.append(left - int(here.masked.sum()))
                cost.draft_seconds += passed - began
        cost.rows, cost.cache_bytes = network.rows, network.nbytes()
        return Generation(until_stop(x[P:].cpu(), self.model.stop_ids), cost)
