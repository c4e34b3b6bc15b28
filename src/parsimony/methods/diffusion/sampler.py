"""The one block sampler of masked diffusion models: a strategy says which positions to commit, the loop does the rest.

    x = prompt + L masks
    for each block, from left to right:
        until it holds no mask:  logits of its rows in one pass -> tokens and confidences -> commit some

Everything is seen by everything, masks of later blocks included; what is committed stays, unless the strategy takes it
back.  (LLaDA, Nie et al., arXiv 2502.09992; this is its "low-confidence remasking" when the strategy commits by
confidence.)
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from time import perf_counter
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from parsimony.interfaces import Cost, Generation
from parsimony.kernels import confidence_entropy
from parsimony.kernels.common import usable
from parsimony.methods.diffusion.caches import PASSES
from parsimony.models.masked import Masked


@dataclass(frozen=True, eq=False)
class View:
    """What a strategy sees of one block behind one pass.

    Attributes
    ----------
    logits : Tensor [B, V] float64
        The mask token's are -inf.
    tokens : Tensor [B] int64
        What each masked position would become (the most probable token, or a drawn one at a temperature), and what
        stands at the others.
    masked : Tensor [B] bool
    step : int
        Passes over this block before this one.
    rng : Generator
    noisy : Tensor [B, V], optional
        The logits with the noise of the temperature; ``tokens`` are their maxima.
    """

    logits: Tensor
    tokens: Tensor
    masked: Tensor
    step: int
    rng: np.random.Generator
    noisy: Tensor | None = None

    @classmethod
    def of(cls, logits: Tensor, row: Tensor, mask: int, step: int, temperature: float, rng) -> View:
        """From the raw logits [B, V] of a block whose tokens are ``row`` [B]."""
        logits = logits.double()
        logits[:, mask] = -torch.inf
        noisy = logits
        if temperature:  # argmax(logits / T + Gumbel), as published: exp(logits) / (-log u)^T
            u = torch.from_numpy(rng.random(tuple(logits.shape))).to(logits.device)
            noisy = logits - temperature * (-u.log()).log()
        masked = row == mask
        return cls(logits, noisy.argmax(-1).where(masked, row), masked, step, rng, noisy)

    @cached_property
    def probs(self) -> Tensor:
        """Probabilities [B, V] float64."""
        return self.logits.softmax(-1)

    @cached_property
    def statistics(self) -> confidence_entropy.Statistics:
        """One pass over the logits, for a GPU (in float32), where probabilities need not be written."""
        return confidence_entropy.statistics(self.logits)

    @cached_property
    def confidence(self) -> Tensor:
        """Probability [B] of each position's token; -inf where nothing is masked."""
        if usable(self.logits):
            chosen = (self.logits.gather(-1, self.tokens[:, None])[:, 0] - self.statistics.lse).exp()
        else:
            chosen = self.probs.gather(-1, self.tokens[:, None])[:, 0]
        return chosen.where(self.masked, torch.tensor(-torch.inf, dtype=chosen.dtype))

    @cached_property
    def entropy(self) -> Tensor:
        """Entropy [B] in nats of each position's distribution."""
        if usable(self.logits):
            return self.statistics.entropy.double()
        return torch.special.entr(self.probs).sum(-1)

    def best(self, scores: Tensor, count: int) -> Tensor:
        """Mask [B] of the ``count`` masked positions with the highest ``scores`` [B]; the lowest index wins ties."""
        scores = scores.where(self.masked, torch.tensor(-torch.inf, dtype=scores.dtype))
        chosen = torch.zeros_like(self.masked)
        chosen[scores.argsort(descending=True, stable=True)[:count]] = True
        return chosen & self.masked


class Strategy(Protocol):
    """Which positions to commit; one small file each.

    It may also have ``take_back(view, chosen)``: decided positions [B] bool to mask again now.
    """

    def begin(self, size: int) -> None:
        """A block of ``size`` masks begins."""
        ...

    def commit(self, view: View) -> Tensor:
        """Positions [B] bool to commit now, at least one masked."""
        ...


class BlockSampler:
    """Generates by unmasking, block by block.

    Parameters
    ----------
    model : Masked
    strategy : Strategy
    block : int or None
        B, positions a block; None: the whole answer.
    caching : {"none", "prefix", "dual"}
    temperature : float
        Of the Gumbel noise; 0 takes the most probable token.
    size : callable (View of the rest, tokens done, limit) -> int, optional
        Chooses the length of each block from the pass that begins it.
    stop : {"never", "accepted", "any"}
        When the sequence is cut short: behind the first end token that was committed, or else also behind the most
        confident end token among the predictions (Learn2PD's end-of-text prediction).
    """

    def __init__(
        self,
        model: Masked,
        strategy: Strategy,
        block: int | None = None,
        caching: str = "none",
        temperature: float = 0.0,
        size: Callable[[View, int, int], int] | None = None,
        stop: str = "never",
    ):
        self.model, self.strategy, self.block, self.caching = model, strategy, block, caching
        self.temperature, self.size, self.stop = temperature, size, stop

    def generate(self, prompt_ids: Tensor, limit: int, rng: np.random.Generator) -> Generation:
        """Answer of at most ``limit`` tokens; all of them are unmasked, and the answer ends with the first end."""
        return self.unmask(PASSES[self.caching](self.model), prompt_ids, limit, rng)

    def unmask(self, network, prompt: Tensor, limit: int, rng: np.random.Generator) -> Generation:
        """The same with any ``network`` that has the methods of `caches.Exact`, such as an exact model."""
        mask, P, done, cost = self.model.mask_id, len(prompt), 0, Cost()
        x = unanswered(prompt, limit, mask).to(network.device)
        while done < limit:
            begin, step, fresh = P + done, 0, True
            size = min(self.block or limit, limit - done)
            while step == 0 or bool((x[begin : begin + size] == mask).any()):
                began = perf_counter()
                logits = network.refresh(x, begin) if fresh else network.step(x, begin, begin + size)
                passed = perf_counter()
                if step == 0:
                    if self.size is not None:
                        rest = View.of(logits, x[begin:], mask, step, self.temperature, rng)
                        size = self.size(rest, done, limit)
                    self.strategy.begin(size)
                if fresh:
                    network.enter(begin, begin + size)
                row = x[begin : begin + size]
                view = View.of(logits[:size], row, mask, step, self.temperature, rng)
                chosen = self.strategy.commit(view) & view.masked
                if fresh and network.stale and self.model.shifted:
                    chosen[0] = view.masked[0]  # later passes have no output that predicts the block's first token
                row[chosen] = view.tokens[chosen]
                again = torch.zeros_like(chosen)
                if hasattr(self.strategy, "take_back"):
                    again = self.strategy.take_back(view, chosen) & ~view.masked
                    row[again] = mask
                cut = self._cut(view, chosen, done)
                fresh = cut < limit
                if fresh:  # what is cached saw a longer sequence
                    x, limit, size = x[: P + cut], cut, min(size, cut - done)
                cost.passes += 1
                cost.accepted_per_pass.append(int(chosen[:size].sum()) - int(again[:size].sum()))
                cost.verify_seconds += passed - began
                cost.draft_seconds += perf_counter() - passed
                step += 1
            done += size
        cost.rows, cost.cache_bytes = network.rows, network.nbytes()
        return Generation(until_stop(x[P:].cpu(), self.model.stop_ids), cost)

    def _cut(self, view: View, chosen: Tensor, done: int) -> int:
        """Tokens of the answer that are worth going on with; many, if all are."""
        if self.stop == "never":
            return sys.maxsize
        ends = torch.isin(view.tokens, torch.tensor(sorted(self.model.stop_ids), device=view.tokens.device))
        if bool((ends & chosen).any()):
            return done + int((ends & chosen).nonzero()[0, 0]) + 1
        if self.stop == "any" and bool((ends & view.masked).any()):
            return done + int(view.confidence.where(ends, torch.tensor(-torch.inf).double()).argmax()) + 1
        return sys.maxsize


def unanswered(prompt: Tensor, limit: int, mask: int) -> Tensor:
    """``prompt`` [P] and ``limit`` masks behind it."""
    return torch.cat((prompt, torch.full((limit,), mask, dtype=torch.int64)))


def until_stop(tokens: Tensor, stop: frozenset[int]) -> Tensor:
    """``tokens`` up to and with the first that ends an answer."""
    ends = [n for n, token in enumerate(tokens.tolist()) if token in stop]
    return tokens[: ends[0] + 1] if ends else tokens
