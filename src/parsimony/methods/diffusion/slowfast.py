"""SlowFast sampling, as ParallelBench states it: look where predictions stand still, then write that span at once."""

from __future__ import annotations

import torch
from torch import Tensor

from parsimony.interfaces import Inputs
from parsimony.methods.diffusion.sampler import BlockSampler, View
from parsimony.models.masked import Masked

WINDOW, SPREAD = 2, 1.0
"""Estimates of a span that must agree, and the standard deviation below which they do."""


class SlowFast:
    """Alternates between a few exploring passes, which fix the next span, and passes that fill this span.

    An exploring pass estimates that the span reaches to the last position of the block with confidence ``tau_span``;
    it is fixed when two estimates agree, at the latest (their mean) after ``explore`` passes.  Every pass commits all
    positions with confidence ``tau_fast`` if there are several, else the best one: exploring passes from the span's
    beginning on, filling passes within the span.

    Parameters
    ----------
    explore : int
    tau_span, tau_fast : float
    block : int or None
    """

    def __init__(self, explore: int = 6, tau_span: float = 0.3, tau_fast: float = 0.9, block: int | None = 32):
        self.rule, self.block = Spans(explore, tau_span, tau_fast), block

    def build(self, model: Masked, inputs: Inputs) -> BlockSampler:
        """The block sampler with this strategy."""
        return BlockSampler(model, self.rule, self.block)


class Spans:
    """The strategy."""

    def __init__(self, explore: int, tau_span: float, tau_fast: float):
        self.explore, self.tau_span, self.tau_fast = explore, tau_span, tau_fast

    def begin(self, size: int) -> None:
        self.first, self.last, self.fixed = 0, size, False
        self.estimates: list[int] = []

    def commit(self, view: View) -> Tensor:
        if len(self.estimates) == self.explore and not bool(view.masked[self.first : self.last].any()):
            self.first, self.fixed, self.estimates = self.last, False, []  # the span is filled: on to the next
        scope = torch.zeros_like(view.masked)
        if len(self.estimates) < self.explore:
            self.look(view.confidence)
            scope[self.first :] = True
        else:
            scope[self.first : self.last] = True
        sure = scope & (view.confidence >= self.tau_fast)
        if int(sure.sum()) > 1:
            return sure
        return view.best(view.confidence.where(scope, -torch.inf), 1)

    def look(self, confidence: Tensor) -> None:
        """Estimate the span's end, and fix it if the last estimates agree."""
        reaching = (confidence[self.first :] >= self.tau_span).nonzero()
        self.estimates.append(self.first + (int(reaching[-1]) + 1 if len(reaching) else 1))
        if not self.fixed and len(self.estimates) >= WINDOW:
            recent = torch.tensor(self.estimates[-WINDOW:], dtype=torch.float64)
            self.fixed = bool(recent.std(correction=0) < SPREAD)
            self.last = self.estimates[-1] if self.fixed else int(recent.mean())
