"""WINO, as ParallelBench states it: commit widely, and let a shadow of the block say what to take back."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from parsimony.errors import UserError
from parsimony.interfaces import Generation, Inputs
from parsimony.methods.diffusion.caches import Exact
from parsimony.methods.diffusion.sampler import BlockSampler, View
from parsimony.models.masked import Masked

MOST, LEAST, SHARE = 20, 5, 0.7
"""Positions that a pass commits at most: a share of the masked ones, within these bounds."""


class Wino:
    """Commits where confidence reaches ``tau_in`` and takes back what its shadow gives less than ``tau_out``.

    Behind the sequence stands a second block of masks at the same positions: a shadow sees everything but the token
    it stands for (though others have seen that), and nothing else sees shadows.  One pass so re-checks what is decided
    and goes on.

    Parameters
    ----------
    tau_in, tau_out : float
    block : int or None
    """

    def __init__(self, tau_in: float = 0.6, tau_out: float = 0.9, block: int | None = 32):
        self.tau_in, self.tau_out, self.block = tau_in, tau_out, block

    def build(self, model: Masked, inputs: Inputs) -> WinoSampler:
        """The sampler.

        Raises
        ------
        UserError
            For a model with shifted outputs: the shadow that predicts a token would see it.
        """
        if model.shifted:
            raise UserError("wino: a model whose outputs are shifted has no shadows; choose another method for it")
        return WinoSampler(model, WideInNarrowOut(self.tau_in, self.tau_out), self.block)


class WinoSampler(BlockSampler):
    """The block sampler over passes with shadows."""

    def generate(self, prompt_ids: Tensor, limit: int, rng: np.random.Generator) -> Generation:
        """Answer of at most ``limit`` tokens."""
        return self.unmask(Shadowed(self.model), prompt_ids, limit, rng)


class Shadowed(Exact):
    """Passes whose logits of decided positions are those of their shadows."""

    def step(self, x: Tensor, begin: int, stop: int) -> Tensor:
        T, B = len(x), stop - begin
        sees = torch.ones(T + B, T + B, dtype=torch.bool, device=x.device)
        sees[:T, T:] = False
        sees[T:, begin:stop] = ~torch.eye(B, dtype=torch.bool, device=x.device)
        mask = self.model.mask_id
        ids = torch.cat((x, x.new_full((B,), mask)))[None]
        positions = torch.cat((torch.arange(T), torch.arange(begin, stop)))[None]
        self.full, self.rows = self.full + 1, self.rows + T + B
        logits = self.decoder.forward(ids, self.decoder.cache(T + B), positions=positions, tree=sees)[0]
        return logits[begin:stop].where((x[begin:stop] == mask)[:, None], logits[T:])


class WideInNarrowOut:
    """The strategy; never takes back as much as the pass before committed, so that it comes to an end."""

    def __init__(self, tau_in: float, tau_out: float):
        self.tau_in, self.tau_out = tau_in, tau_out

    def begin(self, size: int) -> None:
        self.accepted = 0

    def commit(self, view: View) -> Tensor:
        most = min(max(int(SHARE * int(view.masked.sum())), LEAST), MOST)
        return view.best(view.confidence, most) & (view.confidence >= self.tau_in) | view.best(view.confidence, 1)

    def take_back(self, view: View, chosen: Tensor) -> Tensor:
        """Decided positions, the least believed first."""
        most, self.accepted = self.accepted - 1, int(chosen.sum())
        again = torch.zeros_like(chosen)
        if self.accepted > 1 and most > 0:
            belief = view.probs.gather(-1, view.tokens[:, None])[:, 0]  # of what stands there, by its shadow
            doubtful = ~view.masked & (belief < self.tau_out)
            ranked = belief.where(doubtful, torch.tensor(torch.inf, dtype=belief.dtype)).argsort(stable=True)
            again[ranked[:most]] = True
            again &= doubtful
        return again
